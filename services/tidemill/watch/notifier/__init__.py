"""The notifier: alerts, decisions and open circuit breakers, sent to those who are to know."""
