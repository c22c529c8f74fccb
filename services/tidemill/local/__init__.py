"""A whole pipeline on this machine: broker, Redis and services as processes that end with the one that started them."""
