"""The queries that write the SQL of tables: columns, partitions, constraints, indexes, triggers.

Each returns rows with the fields of a Step, tables in the order of their making: a partitioned one before its
partitions. A partition is made as a table of its own and attached, as pg_dump does it, so that the order
of its columns, its defaults and its names are its own.
"""

from syncagent.storage.blueprint.objects import SEQUENCE_OPTIONS

T = """
    with t as (
        select c.*, format('%%I.%%I', n.nspname, c.relname) as name, n.nspname, array[rn.nspname, rc.relname]::text[] as root,
               case c.relkind when 'p' then '' else 'only ' end as scope, u.number
        from unnest(%(tables)s::bigint[]::oid[], %(roots)s::bigint[]::oid[]) with ordinality as u (oid, root, number)
        join pg_class c on c.oid = u.oid join pg_namespace n on n.oid = c.relnamespace
        join pg_class rc on rc.oid = u.root join pg_namespace rn on rn.oid = rc.relnamespace
    )
"""

_IDENTITY = f"""format('generated %%s as identity (sequence name %%I.%%I %%s)', case a.attidentity when 'a' then 'always' else 'by default' end,
               sn.nspname, s.relname, {SEQUENCE_OPTIONS})"""
_ITS_SEQUENCE = """pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace sn on sn.oid = s.relnamespace
        join pg_sequence q on q.seqrelid = s.oid"""
_ITS = """d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid and d.refobjsubid = a.attnum
        and d.deptype = 'i'"""

# Since 18 a NOT NULL has a name, may be for this table only, or for new rows only: that one comes later.
TABLES = f"""
    {T}
    select t.oid::bigint, format('create %%stable %%s (%%s)%%s%%s', case t.relpersistence when 'u' then 'unlogged ' else '' end, t.name,
               coalesce(k.columns, ''), case when t.relkind = 'p' then ' partition by ' || pg_get_partkeydef(t.oid) else '' end,
               case when m.amname <> 'heap' then format(' using %%I', m.amname) else '' end) as sql,
           'table ' || t.name as what, format('select from pg_class where oid = to_regclass(%%L)', t.name) as done, t.root,
           case when k.late then 18 else 0 end as since, 'a virtual generated column, or a NOT NULL with NO INHERIT' as feature
    from t left join pg_am m on m.oid = t.relam
    cross join lateral (
        select string_agg(concat_ws(' ', format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)),
                   case when a.attcollation <> y.typcollation then (
                       select format('collate %%I.%%I', cn.nspname, co.collname) from pg_collation co
                       join pg_namespace cn on cn.oid = co.collnamespace where co.oid = a.attcollation) end,
                   case when a.attgenerated <> '' then format('generated always as (%%s) %%s', pg_get_expr(f.adbin, f.adrelid),
                       case a.attgenerated when 's' then 'stored' else 'virtual' end) end,
                   case when q.seqrelid is not null and not t.relispartition then {_IDENTITY} end,
                   case when a.attnotnull and nn.convalidated is not false then
                       case when nn.oid is null then '' else format('constraint %%I ', nn.conname) end || 'not null' || case when nn.connoinherit then ' no inherit' else '' end end
               ), ', ' order by a.attnum) as columns,
               bool_or(a.attgenerated = 'v' or coalesce(nn.connoinherit, false)) as late
        from pg_attribute a join pg_type y on y.oid = a.atttypid
        left join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
        left join pg_constraint nn on nn.conrelid = a.attrelid and nn.contype = 'n' and nn.conkey = array[a.attnum]
        left join ({_ITS_SEQUENCE}) on {_ITS}
        where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    ) as k
    order by t.number
"""

PARTITIONS = f"""
    {T}
    select format('alter table only %%s attach partition %%s %%s', p.name, t.name, pg_get_expr(t.relpartbound, t.oid)) as sql,
           format('partition %%s of %%s', t.name, p.name) as what,
           format('select from pg_inherits where inhrelid = to_regclass(%%L)', t.name) as done, t.root
    from t join pg_inherits i on i.inhrelid = t.oid join t as p on p.oid = i.inhparent where t.relispartition order by t.number
"""

TYPED = f"""
    {T}
    select format('alter table %%s of %%I.%%I', t.name, n.nspname, y.typname) as sql, 'type of table ' || t.name as what, t.root
    from t join pg_type y on y.oid = t.reloftype join pg_namespace n on n.oid = y.typnamespace order by t.number
"""

PARTITION_IDENTITIES = f"""
    {T}
    select format('alter table only %%s alter column %%I add %%s', t.name, a.attname, {_IDENTITY}) as sql,
           format('identity of column %%I of partition %%s', a.attname, t.name) as what, t.root, 16 as until, true as optional,
           'an identity of a partition''s own' as feature,
           format('select from pg_attribute where attrelid = to_regclass(%%L) and attname = %%L and attidentity <> %%L', t.name, a.attname, '') as done
    from t join pg_attribute a on a.attrelid = t.oid and a.attidentity <> '' and not a.attisdropped
    join ({_ITS_SEQUENCE}) on {_ITS}
    where t.relispartition order by t.number, a.attnum
"""

OWNED = f"""
    {T}
    select format('alter sequence %%I.%%I owned by %%s.%%I', sn.nspname, s.relname, t.name, a.attname) as sql,
           format('sequence %%I.%%I', sn.nspname, s.relname) as what, t.root
    from t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    join pg_depend d on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
        and d.refobjsubid = a.attnum and d.deptype = 'a'
    join pg_class s on s.oid = d.objid and s.relkind = 'S' join pg_namespace sn on sn.oid = s.relnamespace
    order by t.number, a.attnum
"""

DEFAULTS = f"""
    {T}
    select format('alter table only %%s alter column %%I set default %%s', t.name, a.attname, pg_get_expr(f.adbin, f.adrelid)) as sql,
           format('default of column %%I of %%s', a.attname, t.name) as what, t.root
    from t join pg_attribute a on a.attrelid = t.oid and a.attgenerated = '' and not a.attisdropped
    join pg_attrdef f on f.adrelid = t.oid and f.adnum = a.attnum order by t.number, a.attnum
"""

COLUMN_OPTIONS = f"""
    {T}
    select format('alter table only %%s alter column %%I %%s', t.name, a.attname, o.option) as sql, true as optional,
           format('%%s of column %%I of %%s', o.what, a.attname, t.name) as what, t.root
    from t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped join pg_type y on y.oid = a.atttypid
    cross join lateral (
        select 1, 'storage' as what, 'set storage ' || case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end as option
        where a.attstorage <> y.typstorage and a.attgenerated <> 'v'
        union all
        select 2, 'compression', 'set compression ' || case a.attcompression when 'l' then 'lz4' else 'pglz' end where a.attcompression <> ''
        union all
        select 3, 'statistics target', 'set statistics ' || a.attstattarget where a.attstattarget >= 0
        union all
        select 4, 'options', format('set (%%s)', string_agg(format('%%I = %%L', p.option_name, p.option_value), ', '))
        from pg_options_to_table(a.attoptions) as p having count(*) > 0
    ) as o (n, what, option)
    order by t.number, a.attnum, o.n
"""

# One by one: each version knows some that another does not.
TABLE_OPTIONS = f"""
    {T}
    select format('alter table %%s set (%%s%%I = %%L)', t.name, o.prefix, o.name, o.value) as sql, true as optional,
           format('option %%s%%s of table %%s', o.prefix, o.name, t.name) as what, t.root
    from t cross join lateral (
        select '' as prefix, p.* from pg_options_to_table(t.reloptions) with ordinality as p (name, value, n)
        union all
        select 'toast.', p.* from pg_class x cross join lateral pg_options_to_table(x.reloptions) with ordinality as p where x.oid = t.reltoastrelid
    ) as o
    order by t.number, o.prefix, o.n
"""

_CONSTRAINT_DONE = "format('select from pg_constraint where conrelid = to_regclass(%%L) and conname = %%L', t.name, k.conname) as done"
_CONSTRAINT = "format('constraint %%I of %%s', k.conname, t.name) as what, t.root"
_SINCE = """greatest(case when (j.i ->> 'indnullsnotdistinct')::boolean then 15 else 0 end, case when (j.k ->> 'conperiod')::boolean then 18 else 0 end) as since,
           'NULLS NOT DISTINCT (15), or a key with a period (18)' as feature"""

# `kinds` are those of pg_constraint.
INDEXED = f"""
    {T}
    select format('alter table only %%s add constraint %%I %%s', t.name, k.conname, pg_get_constraintdef(k.oid)) as sql,
           {_CONSTRAINT}, {_CONSTRAINT_DONE}, {_SINCE}
    from t join pg_constraint k on k.conrelid = t.oid and k.contype::text = any (%(kinds)s::text[])
    join pg_index i on i.indexrelid = k.conindid cross join lateral (select to_jsonb(i) as i, to_jsonb(k) as k) as j
    order by t.number, k.conname
"""

INDEXES = f"""
    {T}
    select pg_get_indexdef(i.indexrelid) as sql, format('index %%I.%%I', t.nspname, x.relname) as what, t.root,
           format('select from pg_class where oid = to_regclass(%%L)', format('%%I.%%I', t.nspname, x.relname)) as done,
           case when (to_jsonb(i) ->> 'indnullsnotdistinct')::boolean then 15 else 0 end as since, 'NULLS NOT DISTINCT' as feature
    from t join pg_index i on i.indrelid = t.oid join pg_class x on x.oid = i.indexrelid
    where (i.indisvalid or t.relkind = 'p') and not exists (
        select from pg_constraint k where k.conrelid = t.oid and k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
    order by t.number, x.relname
"""

# `primary` says of which: those of keys, or the others.
INDEX_PARTITIONS = f"""
    {T}
    select format('alter index %%I.%%I attach partition %%I.%%I', p.nspname, px.relname, t.nspname, x.relname) as sql,
           format('index %%I.%%I as part of %%I.%%I', t.nspname, x.relname, p.nspname, px.relname) as what, t.root,
           format('select from pg_inherits where inhrelid = to_regclass(%%L)', format('%%I.%%I', t.nspname, x.relname)) as done
    from t join pg_index i on i.indrelid = t.oid join pg_class x on x.oid = i.indexrelid
    join pg_inherits h on h.inhrelid = i.indexrelid join pg_index pi on pi.indexrelid = h.inhparent join pg_class px on px.oid = pi.indexrelid
    join t as p on p.oid = pi.indrelid
    where pi.indisprimary = %(primary)s order by t.number, x.relname
"""

INDEX_OPTIONS = f"""
    {T}
    select o.sql, true as optional, o.what || format(' of index %%I.%%I', t.nspname, x.relname) as what, t.root
    from t join pg_index i on i.indrelid = t.oid and (i.indisvalid or t.relkind = 'p') join pg_class x on x.oid = i.indexrelid
    cross join lateral (
        select format('alter index %%I.%%I set (%%I = %%L)', t.nspname, x.relname, p.option_name, p.option_value) as sql, 'option ' || p.option_name as what, p.n
        from pg_options_to_table(x.reloptions) with ordinality as p (option_name, option_value, n) where x.relkind = 'i' and exists (
            select from pg_constraint k where k.conrelid = t.oid and k.conindid = i.indexrelid and k.contype in ('p', 'u', 'x'))
        union all
        select format('alter index %%I.%%I alter column %%s set statistics %%s', t.nspname, x.relname, a.attnum, a.attstattarget), 'statistics target', a.attnum
        from pg_attribute a where a.attrelid = x.oid and a.attstattarget >= 0
    ) as o
    order by t.number, x.relname, o.what, o.n
"""

CHECKS = f"""
    {T}
    select format('alter table %%s add constraint %%I %%s', t.name, k.conname, pg_get_constraintdef(k.oid)) as sql,
           case when k.convalidated then format('alter table %%s add constraint %%I %%s not valid', t.name, k.conname, pg_get_constraintdef(k.oid)) else '' end as loose,
           {_CONSTRAINT}, {_CONSTRAINT_DONE},
           case when (to_jsonb(k) ->> 'conenforced')::boolean is false then 18 else 0 end as since, 'NOT ENFORCED' as feature
    from t join pg_constraint k on k.conrelid = t.oid and k.contype = 'c' and k.conislocal order by t.number, k.conname
"""

LATE_NOT_NULL = f"""
    {T}
    select format('alter table %%s add constraint %%I %%s', t.name, k.conname, pg_get_constraintdef(k.oid)) as sql, true as optional,
           {_CONSTRAINT}, {_CONSTRAINT_DONE}, 18 as since, 'NOT NULL that is not valid' as feature
    from t join pg_constraint k on k.conrelid = t.oid and k.contype = 'n' and not k.convalidated and k.conislocal order by t.number, k.conname
"""

FOREIGN_KEYS = f"""
    {T}
    select format('alter table %%s%%s add constraint %%I %%s', t.scope, t.name, k.conname, pg_get_constraintdef(k.oid)) as sql,
           case when k.convalidated then format('alter table %%s%%s add constraint %%I %%s not valid', t.scope, t.name, k.conname, pg_get_constraintdef(k.oid)) else '' end as loose,
           {_CONSTRAINT}, {_CONSTRAINT_DONE},
           case when (j.k ->> 'conperiod')::boolean or (j.k ->> 'conenforced')::boolean is false then 18
                when j.k ->> 'confdelsetcols' is not null then 15 else 0 end as since,
           'ON DELETE SET of some columns (15), a period (18), or NOT ENFORCED (18)' as feature
    from t join pg_constraint k on k.conrelid = t.oid and k.contype = 'f' and k.conparentid = 0 cross join lateral (select to_jsonb(k) as k) as j
    where k.confrelid in (select t.oid from t) order by t.number, k.conname
"""

FOREIGN_KEYS_LEFT_OUT = f"""
    {T}
    select format('foreign key %%I of %%s is left out: %%I.%%I is not attached', k.conname, t.name, rn.nspname, r.relname) as note
    from t join pg_constraint k on k.conrelid = t.oid and k.contype = 'f' and k.conparentid = 0
    join pg_class r on r.oid = k.confrelid join pg_namespace rn on rn.oid = r.relnamespace
    where k.confrelid not in (select t.oid from t) order by t.number, k.conname
"""

STATISTICS = f"""
    {T}
    select x.sql, format('statistics %%I.%%I', n.nspname, s.stxname) as what, t.root, x.n > 1 as optional,
           case x.n when 1 then format('select from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where (n.nspname, s.stxname) = (%%L, %%L)',
                                       n.nspname, s.stxname) else '' end as done
    from t join pg_statistic_ext s on s.stxrelid = t.oid join pg_namespace n on n.oid = s.stxnamespace
    cross join lateral (
        select 1, pg_get_statisticsobjdef(s.oid)
        union all select 2, format('alter statistics %%I.%%I set statistics %%s', n.nspname, s.stxname, s.stxstattarget) where s.stxstattarget >= 0
    ) as x (n, sql)
    order by t.number, s.stxname, x.n
"""

# A trigger of a partitioned table comes to its partitions by itself; only its state may be another one there.
TRIGGERS = f"""
    {T}
    select pg_get_triggerdef(g.oid) as sql, format('trigger %%I of %%s', g.tgname, t.name) as what, t.root,
           format('select from pg_trigger where tgrelid = to_regclass(%%L) and tgname = %%L', t.name, g.tgname) as done
    from t join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal and g.tgparentid = 0
    join pg_proc p on p.oid = g.tgfoid join pg_namespace n on n.oid = p.pronamespace and n.nspname <> 'syncagent'
    order by t.number, g.tgname
"""

_STATE = "case {of} when 'D' then 'disable' when 'A' then 'enable always' when 'R' then 'enable replica' else 'enable' end"
TRIGGER_STATES = f"""
    {T}
    select format('alter table %%s %%s trigger %%I', t.name, {_STATE.format(of="g.tgenabled")}, g.tgname) as sql,
           format('state of trigger %%I of %%s', g.tgname, t.name) as what, t.root
    from t join pg_trigger g on g.tgrelid = t.oid and (not g.tgisinternal or g.tgparentid <> 0)
    join pg_proc p on p.oid = g.tgfoid join pg_namespace n on n.oid = p.pronamespace and n.nspname <> 'syncagent'
    left join pg_trigger above on above.oid = g.tgparentid
    where (g.tgenabled <> 'O' or above.tgenabled <> 'O') and not exists (
        select from pg_constraint k where k.oid = g.tgconstraint and k.contype = 'f')
    order by t.number, g.tgname
"""

RULES = f"""
    {T}
    select x.sql, format('rule %%I of %%s', r.rulename, t.name) as what, t.root,
           case x.n when 1 then format('select from pg_rewrite where ev_class = to_regclass(%%L) and rulename = %%L', t.name, r.rulename) else '' end as done
    from t join pg_rewrite r on r.ev_class = t.oid
    cross join lateral (
        select 1, pg_get_ruledef(r.oid)
        union all select 2, format('alter table %%s %%s rule %%I', t.name, {_STATE.format(of="r.ev_enabled")}, r.rulename) where r.ev_enabled <> 'O'
    ) as x (n, sql)
    where r.oid = any (%(rules)s::bigint[]::oid[]) order by t.number, r.rulename, x.n
"""

POLICIES = f"""
    {T}
    select format('create policy %%I on %%s as %%s for %%s to', p.polname, t.name, case when p.polpermissive then 'permissive' else 'restrictive' end,
               case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end) as sql,
           array(select coalesce(a.rolname, '') from unnest(p.polroles) with ordinality as u (oid, n) left join pg_roles a on a.oid = u.oid order by u.n)::text[] as role_names,
           array(select coalesce(quote_ident(a.rolname), 'public') from unnest(p.polroles) with ordinality as u (oid, n) left join pg_roles a on a.oid = u.oid order by u.n) as role_idents,
           concat(' using (' || pg_get_expr(p.polqual, p.polrelid) || ')', ' with check (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')') as tail,
           format('policy %%I of %%s', p.polname, t.name) as what, t.root,
           format('select from pg_policy where polrelid = to_regclass(%%L) and polname = %%L', t.name, p.polname) as done
    from t join pg_policy p on p.polrelid = t.oid order by t.number, p.polname
"""

# What of several indexes the table stands by: replica identity and CLUSTER.
SETTINGS = f"""
    {T}
    select format('alter table %%s%%s %%s', o.scope, t.name, o.what) as sql, o.title || ' of ' || t.name as what, t.root
    from t cross join lateral (
        select 1, t.scope, 'enable row level security' as what, 'row level security' as title where t.relrowsecurity
        union all select 2, t.scope, 'force row level security', 'row level security' where t.relforcerowsecurity
        union all select 3, 'only ', 'replica identity ' || case t.relreplident when 'n' then 'nothing' else 'full' end, 'replica identity'
        where t.relreplident in ('n', 'f')
        union all select 3, 'only ', format('replica identity using index %%I', x.relname), 'replica identity'
        from pg_index i join pg_class x on x.oid = i.indexrelid where i.indrelid = t.oid and i.indisreplident
        union all select 4, '', format('cluster on %%I', x.relname), 'clustering'
        from pg_index i join pg_class x on x.oid = i.indexrelid where i.indrelid = t.oid and i.indisclustered
    ) as o (n, scope, what, title)
    order by t.number, o.n
"""
