"""Which files a service consists of: those whose change restarts it."""

from pathlib import Path

from hiveio.dev.changes import files_of


def test_a_module_consists_of_what_it_imports_from_its_folder(tmp_path: Path) -> None:
    texts = {
        "orders.py": "import os\nfrom events import Ordered\nimport shop.prices as prices\n",
        "events.py": "from hiveio import Event\n",
        "shop/__init__.py": "",
        "shop/prices.py": "from .taxes import VAT\nfrom . import rates\nfrom .. import nothing\n",
        "shop/taxes.py": "import orders\n",  # in a circle
        "shop/rates.py": "def broken(",
        "shop/other.py": "",
        "board.py": "from events import Ordered\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def names(module: str) -> list[str]:
        return sorted(path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path, module))

    shop = ["shop/__init__.py", "shop/prices.py", "shop/rates.py", "shop/taxes.py"]
    assert names("orders") == ["events.py", "orders.py", *shop]
    assert names("board") == ["board.py", "events.py"]
    assert names("shop.other") == ["shop/__init__.py", "shop/other.py"]
    assert names("nowhere") == []
