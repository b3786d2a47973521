"""Write the SQL side as an extension, for servers where files can be placed:

    make extension

Its version is the newest revision; from an older one, `alter extension syncagent update` runs what `syncagent db upgrade`
would. What belongs to an attached table is made later, and is the database's own: pg_dump writes it out. The tables
themselves are the extension's, their rows the database's.
"""

import sys
from pathlib import Path

from syncagent.storage import migrations

CONTROL = """comment = 'multi-master replication: the SQL side of a syncagent site'
default_version = '{version}'
relocatable = false
superuser = false
"""
# Rows that the script itself makes come back with it. What belongs to attached tables is not the extension's.
ROWS = """
do $$
declare
    r record;
begin
    for r in
        select c.oid from pg_class c join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
        join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'syncagent'
        where c.relkind in ('r', 'S') and c.relname <> 'schema_version'
    loop
        perform pg_extension_config_dump(r.oid, '');
    end loop;
end
$$;
"""
GUARD = '\\echo Use "create extension syncagent" to load this file. \\quit\n\n'


def files() -> dict[str, str]:
    """Name and text of every file of the extension."""
    newest = migrations.newest()
    scripts = {f"syncagent--{newest}.sql": GUARD + migrations.script() + ROWS}
    for older in migrations.revisions()[:-1]:
        scripts[f"syncagent--{older}--{newest}.sql"] = GUARD + migrations.script(older) + ROWS
    return {"syncagent.control": CONTROL.format(version=newest), **scripts}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write(target)
    print(f"wrote {target}: copy it to $(pg_config --sharedir)/extension")  # noqa: T201
