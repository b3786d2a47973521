"""The queries that write the SQL of what tables share: schemas, extensions, types, functions, sequences.

Each returns rows with the fields of a Step, and `oid`. The donor's server writes and quotes every name.
"""

SCHEMAS = """
    select n.oid::bigint, format('create schema if not exists %%I', n.nspname) as sql, 'schema ' || n.nspname as what,
           format('select from pg_namespace where nspname = %%L', n.nspname) as done
    from pg_namespace n where n.oid = any (%(oids)s::bigint[]::oid[])
"""

# A schema that the extension makes itself cannot be named to it.
EXTENSIONS = """
    select x.oid::bigint, format('create extension if not exists %%I', x.extname) || case
               when exists (select from pg_depend d where d.classid = 'pg_namespace'::regclass and d.objid = n.oid and d.deptype = 'e') then ''
               else format(' with schema %%I', n.nspname) end as sql,
           'extension ' || x.extname as what,
           format('select from pg_extension where extname = %%L', x.extname) as done, x.oid = any (%(wanted)s::bigint[]::oid[]) as optional
    from pg_extension x join pg_namespace n on n.oid = x.extnamespace where x.oid = any (%(oids)s::bigint[]::oid[])
"""

# Its columns have changed from version to version: colliculocale (15) is colllocale (17), and builtin is a provider since 17.
COLLATIONS = """
    select c.oid::bigint, format('create collation %%s (provider = %%s, %%s, deterministic = %%s%%s)', y.name,
               case c.collprovider when 'i' then 'icu' when 'b' then 'builtin' else 'libc' end,
               case when c.collprovider = 'c' then format('lc_collate = %%L, lc_ctype = %%L', c.collcollate, c.collctype)
                    else format('locale = %%L', coalesce(j.j ->> 'colllocale', j.j ->> 'colliculocale', c.collcollate)) end,
               c.collisdeterministic::text, ', rules = ' || quote_literal(j.j ->> 'collicurules')) as sql,
           'collation ' || y.name as what, format('select from pg_collation where oid = to_regcollation(%%L)', y.name) as done,
           case when c.collprovider = 'b' then 17 when j.j ->> 'collicurules' is not null then 16 else 0 end as since,
           'a collation of the builtin provider, or with rules of its own' as feature
    from pg_collation c join pg_namespace n on n.oid = c.collnamespace
    cross join lateral (select format('%%I.%%I', n.nspname, c.collname) as name) as y
    cross join lateral (select to_jsonb(c) as j) as j
    where c.oid = any (%(oids)s::bigint[]::oid[])
"""

_TYPE = """
    from pg_type t join pg_namespace n on n.oid = t.typnamespace
    cross join lateral (select format('%%I.%%I', n.nspname, t.typname) as name) as y
"""
_DONE = "format('select from pg_type where oid = to_regtype(%%L)', y.name) as done"
_COLLATE = """coalesce((select format(' collate %%I.%%I', cn.nspname, co.collname) from pg_collation co
                   join pg_namespace cn on cn.oid = co.collnamespace where co.oid = {of}), '')"""

ENUMS = f"""
    select t.oid::bigint, format('create type %%s as enum (%%s)', y.name, (
               select string_agg(quote_literal(e.enumlabel), ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)) as sql,
           'type ' || y.name as what, {_DONE}
    {_TYPE} where t.oid = any (%(oids)s::bigint[]::oid[])
"""

COMPOSITES = f"""
    select t.oid::bigint, format('create type %%s as (%%s)', y.name, (
               select string_agg(format('%%I %%s%%s', a.attname, format_type(a.atttypid, a.atttypmod), case
                   when a.attcollation <> at.typcollation then {_COLLATE.format(of="a.attcollation")} else '' end), ', ' order by a.attnum)
               from pg_attribute a join pg_type at on at.oid = a.atttypid where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped)) as sql,
           'type ' || y.name as what, {_DONE}
    {_TYPE} where t.oid = any (%(oids)s::bigint[]::oid[])
"""

# Their defaults and checks follow when the functions that they call are there.
DOMAINS = f"""
    select t.oid::bigint, format('create domain %%s as %%s%%s%%s', y.name, format_type(t.typbasetype, t.typtypmod),
               case when t.typcollation <> b.typcollation then {_COLLATE.format(of="t.typcollation")} else '' end,
               case when t.typnotnull then coalesce((
                   select format(' constraint %%I', k.conname) from pg_constraint k where k.contypid = t.oid and k.contype = 'n'), '') || ' not null'
               else '' end) as sql,
           'domain ' || y.name as what, {_DONE}
    {_TYPE} join pg_type b on b.oid = t.typbasetype where t.oid = any (%(oids)s::bigint[]::oid[])
"""

DOMAIN_DEFAULTS = f"""
    select t.oid::bigint, format('alter domain %%s set default %%s', y.name,
               coalesce(pg_get_expr(t.typdefaultbin, 0), quote_literal(t.typdefault))) as sql,
           'default of domain ' || y.name as what,
           format('select from pg_type where oid = to_regtype(%%L) and typdefault is not null', y.name) as done
    {_TYPE} where t.oid = any (%(oids)s::bigint[]::oid[]) and t.typdefault is not null order by y.name
"""

CHECKS = f"""
    select k.oid::bigint, format('alter domain %%s add constraint %%I %%s', y.name, k.conname, pg_get_constraintdef(k.oid)) as sql,
           format('constraint %%I of domain %%s', k.conname, y.name) as what,
           format('select from pg_constraint where contypid = to_regtype(%%L) and conname = %%L', y.name, k.conname) as done
    {_TYPE} join pg_constraint k on k.contypid = t.oid where k.oid = any (%(oids)s::bigint[]::oid[])
"""

RANGES = f"""
    select t.oid::bigint, format('create type %%s as range (subtype = %%s, subtype_opclass = %%I.%%I%%s%%s%%s, multirange_type_name = %%I.%%I)',
               y.name, format_type(r.rngsubtype, null), oc_n.nspname, oc.opcname,
               case when r.rngcollation <> st.typcollation then (
                   select format(', collation = %%I.%%I', cn.nspname, co.collname) from pg_collation co
                   join pg_namespace cn on cn.oid = co.collnamespace where co.oid = r.rngcollation) else '' end,
               case when r.rngcanonical <> 0 then ', canonical = ' || (select format('%%I.%%I', pn.nspname, p.proname)
                   from pg_proc p join pg_namespace pn on pn.oid = p.pronamespace where p.oid = r.rngcanonical) else '' end,
               case when r.rngsubdiff <> 0 then ', subtype_diff = ' || (select format('%%I.%%I', pn.nspname, p.proname)
                   from pg_proc p join pg_namespace pn on pn.oid = p.pronamespace where p.oid = r.rngsubdiff) else '' end,
               mn.nspname, m.typname) as sql,
           'type ' || y.name as what, {_DONE}
    {_TYPE} join pg_range r on r.rngtypid = t.oid join pg_type st on st.oid = r.rngsubtype
    join pg_type m on m.oid = r.rngmultitypid join pg_namespace mn on mn.oid = m.typnamespace
    join pg_opclass oc on oc.oid = r.rngsubopc join pg_namespace oc_n on oc_n.oid = oc.opcnamespace
    where t.oid = any (%(oids)s::bigint[]::oid[])
"""

FUNCTIONS = """
    select p.oid::bigint, pg_get_functiondef(p.oid) as sql, 'function ' || i.identity as what,
           format('select from pg_proc where oid = to_regprocedure(%%L)', i.identity) as done
    from pg_proc p cross join lateral pg_identify_object('pg_proc'::regclass, p.oid, 0) as i
    where p.oid = any (%(oids)s::bigint[]::oid[])
"""

# `counts` holds the increment of before a sequence was given a stride of this site's own.
SEQUENCE_OPTIONS = """format('start with %%s increment by %%s minvalue %%s maxvalue %%s cache %%s%%s', q.seqstart,
               coalesce((%(counts)s::jsonb ->> q.seqrelid::text)::bigint, q.seqincrement), q.seqmin, q.seqmax, q.seqcache,
               case when q.seqcycle then ' cycle' else '' end)"""

SEQUENCES = f"""
    select c.oid::bigint, format('create sequence %%s as %%s %%s', y.name, format_type(q.seqtypid, null), {SEQUENCE_OPTIONS}) as sql,
           'sequence ' || y.name as what, format('select from pg_class where oid = to_regclass(%%L)', y.name) as done
    from pg_class c join pg_sequence q on q.seqrelid = c.oid join pg_namespace n on n.oid = c.relnamespace
    cross join lateral (select format('%%I.%%I', n.nspname, c.relname) as name) as y
    where c.oid = any (%(oids)s::bigint[]::oid[])
"""

NEEDS = """
    select i.type || ' ' || i.identity as what, a.type, a.object_names as names, a.object_args as arguments
    from unnest(%(classes)s::bigint[]::oid[], %(oids)s::bigint[]::oid[]) as o (class, oid)
    cross join lateral pg_identify_object(o.class, o.oid, 0) as i cross join lateral pg_identify_object_as_address(o.class, o.oid, 0) as a
    order by 1
"""

KINDS = {
    "schema": SCHEMAS,
    "extension": EXTENSIONS,
    "collation": COLLATIONS,
    "enum": ENUMS,
    "composite": COMPOSITES,
    "domain": DOMAINS,
    "range": RANGES,
    "function": FUNCTIONS,
    "check": CHECKS,
    "sequence": SEQUENCES,
}
