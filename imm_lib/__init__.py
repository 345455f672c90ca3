"""Induced Model Matching: let a small accurate model of few features help to train a large one.

Four nouns: where extended contexts come from (``contexts``), the induced model and its risk
(``induced``), how the risk's gradient is estimated (``estimators``), and the restricted model that
is matched (``targets``).
"""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imm_lib.public import *  # noqa: F403

__version__ = "0.1.0"


class _Library(ModuleType):
    """The package. Its modules and public names are imported when they are asked for, so that
    ``python -m imm_lib list`` need not wait for torch.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if importlib.util.find_spec(f"imm_lib.{name}"):
            importlib.import_module(f"imm_lib.{name}")  # which puts it here
            return vars(self)[name]
        public = importlib.import_module("imm_lib.public")
        if name == "__all__":
            return sorted(each for each in vars(public) if not each.startswith("_"))
        if not hasattr(public, name):
            said = f"module {self.__name__!r} has no attribute {name!r}"
            for module in vars(public).values():
                own = getattr(module, name, None) if isinstance(module, ModuleType) else None
                if own is not None and getattr(own, "__module__", "") == module.__name__:
                    said += f"; there is {module.__name__}.{name}"
            raise AttributeError(said, name=name, obj=self)
        setattr(self, name, getattr(public, name))
        return vars(self)[name]

    def __setattr__(self, name: str, value: Any) -> None:
        # a function that has its module's name, as device, is not to be hidden by the module
        hidden = getattr(value, name, None) if isinstance(value, ModuleType) else None
        super().__setattr__(name, hidden if callable(hidden) else value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__all__})


sys.modules[__name__].__class__ = _Library
