"""The queries that write who may do what, what was said about it, and what is compared.

The builder owns what it makes until the end: grants are made by it, as the owner, and go over to the owner of
before with the last step. So a grant that somebody else made at the donor comes as the owner's.
"""

from syncagent.storage.blueprint.relations import T

# Every object that has an owner, with its privileges. No default privileges are known for columns.
_O = f"""
    {T}, o as (
        select 'table ' || t.name as label, '' as col, t.relacl as acl, acldefault('r', t.relowner) as base, t.relowner as owner, t.root,
               format('select from pg_class where oid = to_regclass(%%L) and ', t.name) || 'relowner' as mine, 100 + t.number as rank
        from t
        union all
        select 'table ' || t.name, format(' (%%I)', a.attname), a.attacl, acldefault('c', t.relowner), t.relowner, t.root, '', 100 + t.number
        from t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped where a.attacl is not null
        union all
        select 'sequence ' || y.name, '', c.relacl, acldefault('s', c.relowner), c.relowner, y.root,
               case when y.free then format('select from pg_class where oid = to_regclass(%%L) and ', y.name) || 'relowner' else '' end, 1
        from pg_class c join pg_namespace n on n.oid = c.relnamespace
        cross join lateral (
            select format('%%I.%%I', n.nspname, c.relname) as name, d.root, d.root is null as free
            from (select) as one left join (
                select d.objid, t.root from pg_depend d join t on t.oid = d.refobjid
                where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') and d.refobjsubid > 0
            ) as d on d.objid = c.oid
        ) as y
        where c.relkind = 'S' and (c.oid = any (%(sequences)s::bigint[]::oid[]) or y.root is not null)
        union all
        select 'routine ' || i.identity, '', p.proacl, acldefault('f', p.proowner), p.proowner, null,
               format('select from pg_proc where oid = to_regprocedure(%%L) and ', i.identity) || 'proowner', 1
        from pg_proc p cross join lateral pg_identify_object('pg_proc'::regclass, p.oid, 0) as i where p.oid = any (%(functions)s::bigint[]::oid[])
        union all
        select 'type ' || y.name, '', x.typacl, acldefault('T', x.typowner), x.typowner, null,
               format('select from pg_type where oid = to_regtype(%%L) and ', y.name) || 'typowner', 1
        from pg_type x join pg_namespace n on n.oid = x.typnamespace cross join lateral (select format('%%I.%%I', n.nspname, x.typname) as name) as y
        where x.oid = any (%(types)s::bigint[]::oid[])
        union all
        select format('schema %%I', n.nspname), '', n.nspacl, acldefault('n', n.nspowner), n.nspowner, null,
               format('select from pg_namespace where nspname = %%L and ', n.nspname) || 'nspowner', 200000
        from pg_namespace n where n.oid = any (%(schemas)s::bigint[]::oid[]) and n.nspname <> 'public'
        union all
        select 'collation ' || y.name, '', null, null, c.collowner, null,
               format('select from pg_collation where oid = to_regcollation(%%L) and ', y.name) || 'collowner', 1
        from pg_collation c join pg_namespace n on n.oid = c.collnamespace cross join lateral (select format('%%I.%%I', n.nspname, c.collname) as name) as y
        where c.oid = any (%(collations)s::bigint[]::oid[])
        union all
        select format('statistics %%I.%%I', n.nspname, s.stxname), '', null, null, s.stxowner, t.root,
               format('select from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where (n.nspname, s.stxname) = (%%L, %%L) and ', n.nspname, s.stxname) || 'stxowner', 1
        from t join pg_statistic_ext s on s.stxrelid = t.oid join pg_namespace n on n.oid = s.stxnamespace
    )
"""

GRANTS = f"""
    {_O}, has as (
        select o.label, o.col, o.root, o.owner, o.rank, e.grantee, e.privilege_type, e.is_grantable
        from o cross join lateral aclexplode(o.acl) as e where o.acl is not null
    ), base as (
        select o.label, o.col, o.root, o.owner, o.rank, e.grantee, e.privilege_type, e.is_grantable
        from o cross join lateral aclexplode(o.base) as e where o.acl is not null
    ), change as (
        select 2 as n, h.* from has h where not exists (select from base b
            where (b.label, b.col, b.grantee, b.privilege_type, b.is_grantable) = (h.label, h.col, h.grantee, h.privilege_type, h.is_grantable))
        union all
        select 1, b.* from base b where not exists (select from has h
            where (b.label, b.col, b.grantee, b.privilege_type) = (h.label, h.col, h.grantee, h.privilege_type))
    )
    select format(case c.n when 1 then 'revoke %%s on %%s from' else 'grant %%s on %%s to' end,
               string_agg(c.privilege_type || c.col, ', ' order by c.privilege_type), c.label) as sql,
           case when c.n = 2 and c.is_grantable then ' with grant option' else '' end as tail,
           array[case when c.grantee = c.owner then '' else coalesce(a.rolname, '') end]::text[] as role_names,
           array[case when c.grantee = c.owner then 'current_user' else coalesce(quote_ident(a.rolname), 'public') end] as role_idents,
           case c.n when 1 then 'revoked: ' else 'privileges of ' || coalesce(a.rolname, 'public') || ' on ' end || c.label || c.col as what, c.root,
           case when c.privilege_type = 'MAINTAIN' then 17 else 0 end as since, 'the privilege MAINTAIN' as feature, true as optional
    from change c left join pg_roles a on a.oid = c.grantee
    group by c.n, c.label, c.col, c.root, c.owner, c.grantee, c.is_grantable, c.rank, a.rolname, c.privilege_type = 'MAINTAIN'
    order by c.rank, c.label, c.col, c.n, a.rolname
"""

# What belongs to somebody already stays with him; the schema goes last, for it takes a right to it to give away the rest.
OWNERS = f"""
    {_O}
    select format('alter %%s owner to', o.label) as sql, array[a.rolname]::text[] as role_names, array[quote_ident(a.rolname)] as role_idents,
           'owner of ' || o.label as what, o.root, true as optional,
           o.mine || ' <> (select oid from pg_roles where rolname = current_user)' as done
    from o join pg_roles a on a.oid = o.owner where o.mine <> '' order by o.rank, o.label
"""

COMMENTS = f"""
    {T}, o as (
        select class::regclass::oid as class, oid, null::text[] as root, false as only_columns from unnest(%(classes)s::text[], %(oids)s::bigint[]::oid[]) as o (class, oid)
        union all select 'pg_class'::regclass, t.oid, t.root, false from t
        union all select 'pg_class'::regclass, d.objid, t.root, false from t join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = t.oid
        where d.classid = 'pg_class'::regclass and d.deptype = 'i' and d.refobjsubid > 0   -- sequences of identities
        union all select 'pg_constraint'::regclass, k.oid, t.root, false from t join pg_constraint k on k.conrelid = t.oid
        where k.contype <> 'f' or k.conparentid = 0 and k.confrelid in (select t.oid from t)
        union all select 'pg_class'::regclass, i.indexrelid, t.root, false from t join pg_index i on i.indrelid = t.oid where i.indisvalid or t.relkind = 'p'
        union all select 'pg_trigger'::regclass, g.oid, t.root, false from t join pg_trigger g on g.tgrelid = t.oid
        join pg_proc p on p.oid = g.tgfoid join pg_namespace n on n.oid = p.pronamespace where not g.tgisinternal and n.nspname <> 'syncagent'
        union all select 'pg_policy'::regclass, p.oid, t.root, false from t join pg_policy p on p.polrelid = t.oid
        union all select 'pg_statistic_ext'::regclass, s.oid, t.root, false from t join pg_statistic_ext s on s.stxrelid = t.oid
        union all select 'pg_rewrite'::regclass, r.oid, t.root, false from t join pg_rewrite r on r.ev_class = t.oid where r.oid = any (%(rules)s::bigint[]::oid[])
        union all select 'pg_class'::regclass, y.typrelid, null, true from pg_type y where y.oid = any (%(types)s::bigint[]::oid[]) and y.typrelid <> 0
    )
    select format('comment on %%s is %%L', x.object, d.description) as sql, 'comment on ' || x.object as what, o.root, true as optional
    from o join pg_description d on d.classoid = o.class and d.objoid = o.oid and (d.objsubid > 0 or not o.only_columns)
    cross join lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) as i
    cross join lateral (
        select case when i.type like '%%column' then 'column ' || i.identity
                    when i.type = 'domain constraint' then (
                        select format('constraint %%I on domain %%I.%%I', k.conname, n.nspname, y.typname)
                        from pg_constraint k join pg_type y on y.oid = k.contypid join pg_namespace n on n.oid = y.typnamespace where k.oid = d.objoid)
                    when i.type = 'table constraint' then 'constraint ' || i.identity
                    when i.type = 'statistics object' then 'statistics ' || i.identity
                    else i.type || ' ' || i.identity end as object
    ) as x
    where i.type <> 'schema' or i.identity not in ('public', '"public"')
    order by x.object
"""

LABELS = f"""
    {T} select format('security label %%s of %%s is left out', l.provider, t.name) as note
    from t join pg_seclabel l on l.classoid = 'pg_class'::regclass and l.objoid = t.oid group by 1 order by 1
"""

INVALID = f"""
    {T} select format('index %%I of %%s is left out: it is not valid', x.relname, t.name) as note
    from t join pg_index i on i.indrelid = t.oid join pg_class x on x.oid = i.indexrelid where not i.indisvalid and t.relkind = 'r' order by 1
"""

SPACES = f"""
    {T} select format('%%s is made in the default tablespace, not in %%s', t.name, s.spcname) as note
    from t join pg_tablespace s on s.oid = t.reltablespace order by 1
"""

# ---- what is compared


COLUMNS = """
    select c.oid::bigint, n.nspname as schema, c.relname as table, a.attname as name, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull as not_null,
           case when a.attcollation <> y.typcollation then coalesce((select format('%%I.%%I', cn.nspname, co.collname) from pg_collation co
               join pg_namespace cn on cn.oid = co.collnamespace where co.oid = a.attcollation), '') else '' end as collation,
           case a.attgenerated when 's' then 'stored' when 'v' then 'virtual' else '' end as generated
    from unnest(%(tables)s::bigint[]::oid[]) with ordinality as u (oid, number)
    join pg_class c on c.oid = u.oid join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped left join pg_type y on y.oid = a.atttypid
    order by u.number, a.attnum
"""

KEYS = """
    select i.indrelid::bigint as oid, array_agg(a.attname::text order by k.n) as key
    from pg_index i cross join lateral unnest(i.indkey::smallint[]) with ordinality as k (attnum, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    where i.indrelid = any (%(tables)s::bigint[]::oid[]) and i.indisprimary and k.n <= i.indnkeyatts group by 1
"""

SHAPES = """
    select t.oid::bigint, n.nspname || '.' || t.typname as name, format('%%I.%%I', n.nspname, t.typname) as quoted,
           case t.typtype
               when 'e' then array(select e.enumlabel::text from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder)
               when 'd' then array[format_type(t.typbasetype, t.typtypmod) || case when t.typnotnull then ' not null' else '' end]
               when 'c' then array(select format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)) from pg_attribute a
                                   where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped order by a.attnum)
               when 'r' then (select array['range of ' || format_type(r.rngsubtype, null)] from pg_range r where r.rngtypid = t.oid)
               else '{}' end as shape
    from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.oid = any (%(oids)s::bigint[]::oid[]) order by 2
"""

DIGESTS = """
    select i.identity as name, i.identity as quoted, md5(coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)) as digest
    from pg_proc p cross join lateral pg_identify_object('pg_proc'::regclass, p.oid, 0) as i where p.oid = any (%(oids)s::bigint[]::oid[]) order by 1
"""
