"""The project's own files, byte for byte, beside modules of the checkout with the same names.

In here `from utils.rl_utils import ...` means the `utils` of this folder: as a file is compiled,
its imports of the project's modules get this package's name in front. The checkout's `utils` is not
touched and not seen. Folders without `__init__.py` are those whose registry nobody asks for.
"""

import ast
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

HERE = Path(__file__).parent
ROOMS = {path.stem for path in HERE.iterdir() if path.name not in ("__init__.py", "__pycache__")}


def is_ours(module):
    return module.split(".")[0] in ROOMS


class Redirect(ast.NodeTransformer):
    """`utils.x` -> `inspo_plugin.project.utils.x` in the import statements of a module."""

    def visit_ImportFrom(self, node):
        if node.level == 0 and is_ours(node.module):
            node.module = f"{__name__}.{node.module}"
        return node

    def visit_Import(self, node):
        statements = []
        for alias in node.names:
            statements.append(ast.Import([alias]))
            if is_ours(alias.name):
                room = alias.name.split(".")[0]
                alias.name = f"{__name__}.{alias.name}"
                if alias.asname is None:  # `import utils.x` is to bind the name `utils`
                    statements.append(ast.ImportFrom(__name__, [ast.alias(room)], 0))
        return [ast.copy_location(statement, node) for statement in statements]


class Loader(SourceFileLoader):
    """Compiles a file with its imports redirected."""

    def get_code(self, fullname):
        # Past Python's cache of bytecode, which would not notice a change of `Redirect`.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data, path, **options):
        tree = ast.fix_missing_locations(Redirect().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Finds the modules below this package."""

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(f"{__name__}."):
            return None
        place = HERE.joinpath(*fullname.removeprefix(f"{__name__}.").split("."))
        file, folders = place.with_suffix(".py"), None
        if place.is_dir():
            file, folders = place / "__init__.py", [str(place)]
            if not file.exists():
                namespace = ModuleSpec(fullname, None, is_package=True)
                namespace.submodule_search_locations = folders
                return namespace
        if not file.exists():
            return None
        return spec_from_file_location(
            fullname,
            file,
            loader=Loader(fullname, str(file)),
            submodule_search_locations=folders,
        )


sys.meta_path.insert(0, Finder())
