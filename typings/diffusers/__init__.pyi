# diffusers declares its types, and they are wrong where this project touches it: `config` is said to
# be a dict without attributes, `from_config` and `encode` to return tuples. So all of it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
