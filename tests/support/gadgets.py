"""Hostile snapshots, put together opcode by opcode: each would do something if it were read as any pickle is."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

VALUES = "tidemill.registry.values"
BILLION = 1_000_000_000


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def plain(value: Any) -> bytes:
    """A plain value's opcodes, without a head and an end."""
    if isinstance(value, bytes) and value.startswith(b"RAW"):
        return value[3:]
    if isinstance(value, tuple):
        return b"(" + b"".join(map(plain, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(plain(k) + plain(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(plain, value)) + b"e"
    body = pickle.dumps(value, 4)
    start = 11 if body[2:3] == b"\x95" else 2
    if isinstance(value, bytes):
        return body[start:-2]  # nothing goes into the memo by itself
    return body[start:-1].replace(b"\x94", b"") if isinstance(value, str) else body[start:-1]


def raw(code: bytes) -> bytes:
    """Opcodes where `plain` expects a value."""
    return b"RAW" + code


def name(dotted: str) -> bytes:
    module, _, last = dotted.partition(":")
    return text(module) + text(last) + b"\x93"


def call(function: bytes, *arguments: Any) -> bytes:
    return function + plain(arguments) + b"R"


def new(cls: bytes, *arguments: Any) -> bytes:
    return cls + plain(arguments) + b"\x81"


def state(target: bytes, value: Any) -> bytes:
    return target + plain(value) + b"b"


def whole(code: bytes) -> bytes:
    return b"\x80\x04" + code + b"."


def value(function: str, *arguments: Any) -> bytes:
    return call(name(f"{VALUES}:{function}"), *arguments)


def repeated(function: str, arguments: tuple[Any, ...], times: int) -> bytes:
    """A list of what so many calls make of the same arguments, which are in the memo once."""
    code = b"](" + name(function) + b"\x94" + plain(arguments) + b"\x94R"
    return code + b"h\x00h\x01R" * (times - 1) + b"e"


def doubled(times: int) -> bytes:
    """A tuple of two tuples that are one, so many times over: who walks it has no end."""
    return b")\x94" + b"".join(b"h" + bytes([n]) + b"\x86\x94" for n in range(times))


MEAN, ZEROS = name("river.stats.mean:Mean"), name("river.optim.initializers:Zeros")

#: A call of each with the path that it would make, read, delete or run.
_CALLS = """
os:mkdir os:system os:makedirs os:remove os:unlink os:rmdir os:open os:popen os:execv posix:system posix:mkdir nt:system
builtins:eval builtins:exec builtins:compile builtins:open builtins:__import__ builtins:getattr builtins:setattr
builtins:delattr builtins:input builtins:breakpoint builtins:globals builtins:vars builtins:type builtins:super
builtins:bytes builtins:bytearray builtins:memoryview builtins:map builtins:filter builtins:print builtins:object
io:open io:FileIO io:open_code _io:FileIO codecs:open pathlib:Path pathlib:PosixPath tempfile:mkdtemp tempfile:mkstemp
subprocess:Popen subprocess:run subprocess:call subprocess:check_output subprocess:getoutput pty:spawn commands:getoutput
importlib:import_module importlib:reload importlib.util:spec_from_file_location runpy:run_path runpy:run_module
imp:load_source pkgutil:resolve_name pydoc:locate pydoc:pipepager code:interact code:InteractiveInterpreter pdb:run
bdb:Bdb timeit:timeit trace:Trace cProfile:run profile:run doctest:testfile unittest:main webbrowser:open
urllib.request:urlopen urllib.request:urlretrieve http.client:HTTPConnection socket:create_connection socket:socket
smtplib:SMTP ftplib:FTP xmlrpc.client:ServerProxy asyncio:create_subprocess_shell multiprocessing:Process
threading:Thread signal:signal sys:exit sys:setrecursionlimit sys:settrace atexit:register gc:disable shutil:rmtree
shutil:copyfile shutil:make_archive shutil:unpack_archive zipfile:ZipFile tarfile:open gzip:open sqlite3:connect
dbm:open shelve:open ctypes:CDLL marshal:loads pickle:loads pickle:load pickle:Unpickler copyreg:add_extension
copyreg:__newobj__ copyreg:_reconstructor types:FunctionType types:CodeType types:ModuleType types:MethodType
operator:attrgetter operator:methodcaller operator:itemgetter operator:setitem functools:partial functools:reduce
functools:partialmethod itertools:repeat itertools:count itertools:product string:Formatter logging:FileHandler
logging.config:dictConfig inspect:getmodule ast:literal_eval re:compile random:SystemRandom uuid:getnode
numpy:load numpy:fromfile numpy:memmap numpy:loadtxt numpy:save numpy:genfromtxt numpy:ndarray numpy:zeros numpy:empty
numpy:frompyfunc numpy:vectorize numpy.testing:rundocs numpy.testing._private.utils:runstring numpy.f2py:compile
numpy.ctypeslib:load_library numpy._core.multiarray:_reconstruct numpy._core.multiarray:scalar
numpy._core.numeric:_frombuffer numpy.random._pickle:__randomstate_ctor numpy.random._pickle:__bit_generator_ctor
pandas:read_pickle pandas:read_csv pandas.io.common:get_handle joblib:load torch:load cloudpickle:loads
fsspec:open confluent_kafka:Producer redis:Redis tidemill:load tidemill.declare.load:load tidemill.files:Files
river.stream:iter_csv river.stream.iter_csv:iter_csv river.stream.iter_arff:iter_arff river.stream.iter_libsvm:iter_libsvm
river.stream.cache:Cache river.stream.cache:Cache.clear_all river.stream.utils:open_filepath river.stream.qa:simulate_qa
river.stream.twitch_chat_stream:TwitchChatStream river.stream.tweet_stream:TwitterLiveStream
river.datasets.synth.agrawal:Agrawal river.datasets.synth:Agrawal river.datasets.base:get_data_home
river.datasets.base:FileDataset river.datasets.base:RemoteDataset river.datasets.base:RemoteDataset.download
river.datasets:Bananas river.datasets.sms_spam:SMSSpam river.datasets.malicious_url:MaliciousURL
river.bandit.datasets.news:NewsArticles river.bandit.evaluate_offline:evaluate_offline river.evaluate.gen:WrappedGenerator
river.evaluate.progressive_validation:progressive_val_score river.checks:check_estimator river.checks:yield_checks
river.base.base:log_method_calls river.base.base:_repr_obj river.utils.pretty:print_table river.utils:log_method_calls
river.compat.river_to_sklearn:convert_river_to_sklearn river.misc.zstd_classifier:ZstdClassifier
""".split()  # noqa: SIM905

#: Parts of models, which a snapshot may hold and not call: their arguments would be an attacker's.
_PARTS = """
river.sketch.counter:Counter river.sketch.histogram:Histogram river.metrics.roc_auc:ROCAUC
river.stats.mean:Mean river.optim.initializers:Normal river.optim.initializers:Zeros
river.tree.hoeffding_tree_classifier:HoeffdingTreeClassifier river.anomaly.hst:HalfSpaceTrees
""".split()  # noqa: SIM905

#: Names with a way through something else: dots are no way.
_DOTTED = """
river.datasets.base:os.mkdir river.stream.cache:os.remove river.stream.utils:gzip.open river.anomaly:base.os.x
river.stats.mean:Mean.update.__globals__ river.stats.mean:Mean.__init__.__globals__ river.stats.mean:Mean.__class__
river.stats.mean:Mean.__subclasses__ river.stats.mean:Mean.__mro__ river.compose.pipeline:Pipeline.__reduce_ex__
tidemill.registry.values:np.load tidemill.registry.values:functools.reduce tidemill.registry.values:operator.attrgetter
tidemill.registry.values:_rust_stats tidemill.registry.snapshots:load tidemill.registry.snapshots:pickle.loads
tidemill.registry.parts:importlib.import_module tidemill.registry.values:REDUCERS tidemill.registry.values:check_method
builtins:str.format builtins:str.lower builtins:dict.__setitem__ builtins:object.__subclasses__ random:Random.seed
copy:deepcopy.__globals__ copy:copyreg collections:_sys collections:_sys.modules statistics:sys.exit
numpy:ones.__globals__ numpy:random.seed numpy:ctypeslib numpy:core math:__loader__
""".split()  # noqa: SIM905


def corpus(mark: str) -> dict[str, bytes]:
    """Return snapshots by a name; whatever any of them does is done to `mark`, a path that does not exist."""
    cases: dict[str, bytes] = {}
    for one in (*_CALLS, *_PARTS):
        module, _, last = one.partition(":")
        cases[f"call {one}"] = whole(call(name(one), mark))
        cases[f"old call {one}"] = f"c{module}\n{last}\n(V{mark}\ntR.".encode()
    for one in _CALLS:
        cases[f"object of {one}"] = whole(state(new(name(one)), {"path": mark, "x": BILLION}))
        cases[f"kept {one}"] = whole(plain({"model": raw(value("partial", raw(name(one)), (mark,), {}))}))
    for one in _DOTTED:
        cases[f"dots {one}"] = whole(call(name(one), mark))
    cases |= {f"class: {key}": whole(code) for key, code in _CLASSES.items()}
    cases |= {f"size: {key}": whole(code) for key, code in _SIZES.items()}
    cases |= {f"value: {key}": whole(code) for key, code in _VALUES.items()}
    return cases | {f"opcode: {key}": code(mark) for key, code in _OPCODES.items()}


_PATCH = (None, {"update": raw(name("builtins:len")), "get": raw(name("builtins:len"))})
BUFFER_ITEM = name("river.cluster.denstream:DenStream.BufferItem")
_CLASSES: dict[str, bytes] = {
    "patched by slots": state(MEAN, _PATCH),
    "patched by a dict": state(MEAN, {"update": 1}),
    "patched from the memo": MEAN + b"\x940h\x00"[0:1] + plain(_PATCH) + b"b",
    "patched while it is a default": state(value("default_dict", raw(MEAN)), _PATCH),
    "its attributes replaced": state(MEAN, (None, {"__init__": raw(name("builtins:len")), "__class__": raw(MEAN)})),
    "called": call(MEAN),
    "called with what it keeps": call(name("river.sketch.counter:Counter"), 1e-9, 1e-9),
    "made with arguments": new(MEAN, 1, 2),
    "an object called": call(new(ZEROS), BILLION * 100),
    "a partial called": call(value("partial", raw(ZEROS), (), {})),
    "a method called": call(value("method", raw(new(MEAN)), "clone")),
    "a method of a huge metric called": call(
        value("method", raw(state(new(name("river.metrics.roc_auc:ROCAUC")), {"n_thresholds": BILLION})), "clone")
    ),
    "a partial changed": state(
        value("partial", raw(MEAN), (), {}), (raw(name("numpy:ones")), (BILLION * 100,), {}, None)
    ),
    "a partial of ones changed": state(
        value("partial", raw(name("numpy:ones")), (1,), {}), (raw(name("numpy:ones")), (BILLION * 100,), {}, None)
    ),
    "a function changed": state(name("copy:deepcopy"), {"__wrapped__": 1}),
    "a function of River's changed": state(name("river.utils.math:minkowski_distance"), {"evil": 1}),
    "a function of ours changed": state(name(f"{VALUES}:array"), {"evil": 1}),
    "a function's defaults changed": state(
        name("river.utils.math:minkowski_distance"), (None, {"__defaults__": (1,), "__code__": 1})
    ),
    "a type changed": state(name("builtins:dict"), (None, {"get": 1})),
    "a Counter's class changed": state(name("collections:Counter"), (None, {"update": 1})),
    "items set on a class": MEAN + plain("a") + plain(1) + b"s",
    "items set on a model": new(name("river.neighbors.lazy:LazySearch")) + plain(1) + b"a",
    "items set on a pipeline": new(name("river.compose.pipeline:Pipeline")) + plain("a") + plain(1) + b"s",
    "items set on a window": new(name("river.utils.sorted_window:SortedWindow")) + b"(" + plain(1) + b"e",
    "an attribute of a class": value("method", raw(MEAN), "__subclasses__"),
    "an attribute of an object": value("method", raw(new(MEAN)), "__class__"),
    "globals of a method": value("method", raw(value("method", raw(new(MEAN)), "clone")), "__globals__"),
    "globals of a function": value("method", raw(name("copy:deepcopy")), "__globals__"),
    "another method of a text": value("method", raw(name("builtins:str")), "format"),
    "a method of a value": value("method", "{0.__class__}", "format"),
    "a method under a name of its own": value(
        "method", raw(state(new(MEAN), {"clone": raw(name("builtins:len"))})), "learn_one"
    ),
    "a method that no model keeps": value("method", raw(new(MEAN)), "mutate"),
    "a name that is no text": value("method", raw(new(MEAN)), 5),
    "a random method": value("method", raw(value("random_numbers", 3, b"\0" * 2496, 0, None)), "getrandbits"),
    "a metaclass": new(name("river.base.estimator:EstimatorMeta"), "x", (), {}),
    "an abstract class of a file": new(name("river.datasets.base:Dataset")),
    "what an error is": new(name("builtins:Exception"), "x"),
    "a function as a state's taker": state(state(new(MEAN), {"__setstate__": raw(name("numpy:ones"))}), BILLION // 4),
    "a class as a state's taker": state(
        state(new(MEAN), {"__setstate__": raw(name("river.metrics.roc_auc:ROCAUC"))}), BILLION
    ),
    "a partial as a state's taker": state(
        state(new(MEAN), {"__setstate__": raw(value("partial", raw(name("numpy:array")), (), {"ndmin": 30}))}), [1.0]
    ),
    "a slot as a state's taker": state(
        state(new(MEAN), (None, {"__setstate__": raw(name("copy:deepcopy"))})), {"a": 1}
    ),
    "the state of what it rolls over": state(
        state(new(name("river.utils.rolling:Rolling")), {"obj": raw(value("rust", "RsPeakToPeak", b"\0" * 16))}), b"x"
    ),
    "a state twice": state(state(new(MEAN), {"a": "__setstate__"}), {"b": 1}),
    "a state twice with its taker in slots": state(
        state(new(BUFFER_ITEM), (None, {"__setstate__": raw(MEAN)})), (None, {"timestamp": 1})
    ),
    "a dict for an object of slots": state(new(BUFFER_ITEM), ({"x": 1}, {"timestamp": 1})),
    "another slot": state(new(BUFFER_ITEM), (None, {"evil": 1})),
    "a class by a slot of slots": state(new(BUFFER_ITEM), (None, {"__class__": raw(BUFFER_ITEM)})),
    "a class by a slot beside a slot": state(
        new(BUFFER_ITEM), (None, {"timestamp": 1, "__class__": raw(name("river.sketch.histogram:Bin"))})
    ),
    "a state that is an object": state(new(name("river.utils.rolling:Rolling")), raw(new(MEAN))),
    "a state that is a Counter": state(new(MEAN), raw(value("counter", {"a": 1}))),
    "a state that is a list": state(new(MEAN), [1]),
    "slots that are an object": state(new(MEAN), (None, raw(new(MEAN)))),
    "a property by a slot": state(
        new(name("river.tree.hoeffding_tree_classifier:HoeffdingTreeClassifier")), (None, {"max_size": 1})
    ),
    "a property by a slot, beside a state's taker": state(
        new(name("river.tree.hoeffding_tree_classifier:HoeffdingTreeClassifier")), (None, {"max_size": "__setstate__"})
    ),
    "a class by a slot": state(new(MEAN), (None, {"__class__": raw(ZEROS)})),
    "a dict by a slot": state(new(MEAN), (None, {"__dict__": {"__setstate__": 1}})),
    "what fills a queue": state(
        new(name("river.time_series.holt_winters:Component")), {"extend": raw(name("numpy:ones"))}
    ),
    "a module": text("os") + text("") + b"\x93",
    "no module": text("") + text("") + b"\x93",
}

_SIZES: dict[str, bytes] = {
    "an array of gigabytes": value("array", "<f8", (BILLION, 100), b"", "C"),
    "an array of another shape": value("array", "<f8", (3,), b"12345678", "C"),
    "an array of a negative shape": value("array", "<f8", (-1, -8), b"12345678" * 8, "C"),
    "an array of no numbers in many dimensions": value("array", "<f8", (0, *[2**40] * 7), b"", "C"),
    "an array of many dimensions": value("array", "<f8", (1,) * 60, b"12345678", "C"),
    "an array of a shape that overflows": value("array", "<f8", (2**63, 2**63), b"", "C"),
    "an array of a shape of floats": value("array", "<f8", (1.0,), b"12345678", "C"),
    "ones of gigabytes": value("partial", raw(name("numpy:ones")), (BILLION * 100,), {}),
    "ones of gigabytes by a shape": value("partial", raw(name("numpy:ones")), ((BILLION, 100),), {}),
    "ones of gigabytes by a name": value("partial", raw(name("numpy:ones")), (), {"shape": BILLION * 100}),
    "ones called": call(name("numpy:ones"), BILLION * 100),
    "a range of all": value("span", 0, BILLION * BILLION, 1),
    "a range backwards": value("span", BILLION, 0, -1),
    "a range of no step": value("span", 0, 10, 0),
    "a range of floats": value("span", 0.0, 1e300, 1.0),
    "a deque of a negative size": value("queue", -1),
    "a deque of an iterator": value("queue", raw(value("span", 0, 5, 1))),
    "a Counter of a range": value("counter", raw(value("span", 0, 5, 1))),
    "a fraction of gigabytes": call(name("fractions:Fraction"), "1e999999999"),
    "a fraction of texts": value("fraction", "1e999999999", 1),
    "a fraction of huge numbers": value("fraction", 1 << 20_000, 3),
    "a fraction of nothing": value("fraction", 1, 0),
    "a name of megabytes": name("os:" + "x" * 5_000_000),
    "a name of two lines": name("os\nCRITICAL forged:x\x1b[2J\ny"),
    "an array of a text of megabytes": value("array", "x" * 5_000_000, (1,), b"12345678", "C"),
    "a megabyte for a thousand arrays": repeated(f"{VALUES}:array", ("|u1", (1_000_000,), b"1" * 1_000_000, "C"), 1000),
    "one state for many random numbers": repeated(f"{VALUES}:random_numbers", (3, b"1" * 2496, 0, None), 100_000),
    "one state for many random states": repeated(f"{VALUES}:random_state", (b"1" * 2496, 0, 0, 0.0), 100_000),
    "one fraction many times": repeated(f"{VALUES}:fraction", (3**6300, 2**9999 - 1), 20_000),
    "one text for many decimals": repeated("decimal:Decimal", ("9" * 100_000,), 10_000),
    "digits for many decimals": repeated("decimal:Decimal", ((0, (9,) * 100_000, 0),), 10_000),
    "a thousand counts many times": repeated(f"{VALUES}:counter", ({n: n for n in range(1000)},), 10_000),
    "a thousand arguments many times": repeated(f"{VALUES}:partial", (raw(MEAN), (1,) * 1000, {}), 10_000),
    "a thousand keys many times": repeated("collections:OrderedDict", ({n: n for n in range(1000)},), 10_000),
    "an array of a type without end": value("array", raw(doubled(60)), (1,), b"12345678", "C"),
    "a decimal of a tuple without end": call(name("decimal:Decimal"), raw(doubled(60))),
    "a statistic of a name without end": value("rust", raw(doubled(60)), b""),
    "a memo of gigabytes": b"Nr\xff\xff\xff\x7f",
    "a memo of more": b"Nq\x00r\xff\xff\xff\xff",
    "a memo by a text": b"Np4000000000\n",
    "a bytearray of gigabytes": b"\x96" + struct.pack("<Q", BILLION * 100),
    "bytes of gigabytes": b"\x8e" + struct.pack("<Q", BILLION * 100),
    "bytes of all": b"\x8e" + b"\xff" * 8,
    "a text of gigabytes": b"\x8d" + struct.pack("<Q", BILLION * 100),
    "a frame of gigabytes": b"\x95" + struct.pack("<Q", BILLION * 100) + b"N",
    "an integer of gigabytes": b"\x8b" + struct.pack("<I", 2**31 - 1),
    "an integer of a negative size": b"\x8b" + struct.pack("<i", -1),
}

_VALUES: dict[str, bytes] = {
    "an array of objects": value("array", "|O8", (1,), b"12345678", "C"),
    "an array of records": value("array", "V8", (1,), b"12345678", "C"),
    "an array of texts": value("array", "<U2", (1,), b"12345678", "C"),
    "an array of dates": value("array", "<M8[s]", (1,), b"12345678", "C"),
    "an array of a type that is none": value("array", 5, (1,), b"12345678", "C"),
    "an array in another order": value("array", "<f8", (1,), b"12345678", "K"),
    "a number that is an object": value("number", "|O8", b"12345678"),
    "a number of another size": value("number", "<f8", b"123"),
    "a random state beyond its end": value("random_state", b"\0" * 2496, BILLION, 0, 0.0),
    "a random state before its begin": value("random_state", b"\0" * 2496, -5, 0, 0.0),
    "a random state of another size": value("random_state", b"\0" * 8, 0, 0, 0.0),
    "random numbers beyond their end": value("random_numbers", 3, b"\0" * 2496, 99_999, None),
    "random numbers of another size": value("random_numbers", 3, b"\0", 0, None),
    "random numbers of version 2": value("random_numbers", 2, b"\0" * 2496, 0, None),
    "a generator of too much": value("generator", 2**200, 1, 0, 0),
    "a generator of texts": value("generator", "a", 1, 0, 0),
    "a distribution of texts": value("normal", "a", "b"),
    "an item getter of objects": value("item_getter", raw(new(MEAN))),
    "an item getter of nothing": value("item_getter"),
    "an iterator of a text": value("iterator", "abc", 0),
    "an iterator at no place": value("iterator", [1], -1),
    "a VectorDict of a list": value("vector_dict", [1], None, None),
    "a VectorDict with a mask": value("vector_dict", {}, None, 5),
    "a VectorDict of a default that is none": value("vector_dict", {}, 5, None),
    "a default that is none": value("default_dict", 5),
    "a default with what is in it": value("default_dict", None, {"a": 1}),
    "a default of an object that can't be called": value("default_dict", raw(new(MEAN))),
    "a deque with what is in it": value("queue", [1], 5),
    "a deque of a flag": value("queue", True),
    "a method with what is there instead": value("method", raw(new(MEAN)), "nothing", 5),
    "a method of a queue": value("method", raw(value("queue", 5)), "append"),
    "a method of a default": value("method", raw(value("default_dict", None)), "update"),
    "a method of an array": value("method", raw(value("array", "|u1", (1,), b"1", "C")), "tofile"),
    "an array's state": state(value("array", "|u1", (1,), b"1", "C"), (1, (1,), raw(MEAN), False, b"1")),
    "random numbers' state": state(value("random_numbers", 3, b"\0" * 2496, 0, None), (3, (1,), None)),
    "an iterator's state": state(value("iterator", [1], 0), -1),
    "a default's state": state(value("default_dict", None), {"a": 1}),
    "a queue's state": state(value("queue", None), {"a": 1}),
    "a default called": call(value("default_dict", None), 1),
    "an array called": call(value("array", "|u1", (1,), b"1", "C"), 1),
    "a default that is called with arguments": value("default_dict", raw(name("os:mkdir"))),
    "a Counter of numbers": value("counter", 5),
    "a partial of a number": value("partial", 5, (), {}),
    "a partial of a text": value("partial", "os.mkdir", ("x",), {}),
    "a partial of a list": value("partial", raw(MEAN), [], {}),
    "a statistic that does not exist": value("rust", "RsNone", b""),
    "a statistic of no bytes": value("rust", "RsQuantile", b""),
    "a statistic of noise": value("rust", "RsRollingQuantile", b"\xff" * 400),
    "a statistic of zeros": value("rust", "RsRollingIQR", b"\0" * 7),
    "a window of noise": value("rust", "AdaptiveWindowing", b"\xff" * 640),
    "a date of noise": call(name("datetime:datetime"), b"\xff" * 10),
    "too few arguments": value("array"),
    "arguments that are no tuple": name(f"{VALUES}:array") + plain([1]) + b"R",
    "a call of a value": call(plain(5), 1),
    "an object of a value": plain(5) + b")\x81",
    "a state of a value": state(plain([1]), {"a": 1}),
    "items of a value": plain(5) + plain("a") + plain(1) + b"s",
    "a key that has no hash": plain({}) + plain([1]) + plain(1) + b"s",
    "an enumeration": call(name("enum:Enum"), "x"),
    "a name of a number": plain(5) + plain(6) + b"\x93",
    "a tuple of too few": b"N\x87",
    "a mark that is missing": b"Nt",
    "what was never in the memo": b"h\x05",
}

_OPCODES: dict[str, Callable[[str], bytes]] = {
    "INST": lambda mark: f"(V{mark}\nios\nmkdir\n.".encode(),
    "OBJ": lambda mark: b"\x80\x04(" + name("os:mkdir") + plain(mark) + b"o.",
    "EXT1": lambda mark: b"\x80\x04\x82\x01.",
    "EXT2": lambda mark: b"\x80\x04\x83\x01\x00.",
    "EXT4": lambda mark: b"\x80\x04\x84\x01\x00\x00\x00.",
    "PERSID": lambda mark: b"\x80\x04Pevil\n.",
    "BINPERSID": lambda mark: b"\x80\x04NQ.",
    "NEWOBJ_EX": lambda mark: b"\x80\x04" + MEAN + b")}\x92.",
    "DUP": lambda mark: b"\x80\x04N2\x86.",
    "POP": lambda mark: b"\x80\x04NN0.",
    "POP_MARK": lambda mark: b"\x80\x04N(N1.",
    "GLOBAL": lambda mark: f"\x80\x04cos\nmkdir\n(V{mark}\ntR.".encode("latin-1"),
    "GLOBAL with a plain name": lambda mark: b"\x80\x04criver.stats.mean\nMean\n)\x81.",
    "INT": lambda mark: b"\x80\x04I5\n.",
    "LONG": lambda mark: b"\x80\x04L5L\n.",
    "FLOAT": lambda mark: b"\x80\x04F5\n.",
    "STRING": lambda mark: b"\x80\x04S'a'\n.",
    "UNICODE": lambda mark: b"\x80\x04Va\n.",
    "NEXT_BUFFER": lambda mark: b"\x80\x05\x97.",
    "READONLY_BUFFER": lambda mark: b"\x80\x05N\x98.",
    "PROTO again": lambda mark: b"\x80\x04\x80\x04N.",
    "protocol 3": lambda mark: b"\x80\x03N.",
    "protocol 9": lambda mark: b"\x80\x09N.",
    "protocol 0": lambda mark: b"N.",
    "no end": lambda mark: b"\x80\x04N",
    "nothing": lambda mark: b"",
    "a head": lambda mark: b"\x80",
    "an end": lambda mark: b"\x80\x04.",
    "two ends": lambda mark: b"\x80\x04N.N.",
    "an end and more": lambda mark: b"\x80\x04N." + f"cos\nmkdir\n(V{mark}\ntR.".encode(),
    "another pickle after it": lambda mark: pickle.dumps({}, 5) + f"cos\nmkdir\n(V{mark}\ntR.".encode(),
    "a text that is cut off": lambda mark: b"\x80\x04\x8c\x09abc.",
    "a text that is no text": lambda mark: b"\x80\x04\x8c\x02\xff\xfe.",
    "a zip file": lambda mark: b"PK\x03\x04" + mark.encode(),
    "JSON": lambda mark: b'{"py/reduce": [{"py/function": "os.mkdir"}]}',
    "YAML": lambda mark: f"!!python/object/apply:os.mkdir ['{mark}']".encode(),
    "a shell's words": lambda mark: f"#!/bin/sh\nmkdir {mark}\n".encode(),
    "marshal": lambda mark: b"\xe3\x00\x00\x00",
}
