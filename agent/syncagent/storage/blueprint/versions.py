"""The queries that write the versions of the application's schema: schemas of views over attached tables, as the donor has them.

They are remembered at the new site as at the donor, so that the next change finds them.
"""

_V = """
    with v as (
        select a.name, a.base, a.made_at, n.oid as schema, c.oid, c.relname, c.relacl, c.relowner, n.nspacl, n.nspowner,
               format('%%I.%%I', a.name, c.relname) as view
        from syncagent.app_version a join pg_namespace n on n.nspname = a.name
        left join pg_class c on c.relnamespace = n.oid and c.relkind = 'v'
    )
"""

VERSIONS = f"""
    {_V}
    select s.sql, s.what, s.done, s.since, s.feature, s.optional from (
        select distinct on (v.name) 1 as part, v.made_at, v.name as rank, format('create schema %%I', v.name) as sql, 'version ' || v.name as what,
               format('select from pg_namespace where nspname = %%L', v.name) as done, 0 as since, '' as feature, false as optional from v
        union all
        select distinct on (v.name) 2, v.made_at, v.name, format('insert into syncagent.app_version (name, base, made_at) values (%%L, %%L, %%L)', v.name, v.base, v.made_at),
               'version ' || v.name, format('select from syncagent.app_version where name = %%L', v.name), 0, '', false from v
        union all
        select 3, v.made_at, v.view, format('create view %%s as %%s', v.view, pg_get_viewdef(v.oid)), 'view ' || v.view,
               format('select from pg_class where oid = to_regclass(%%L)', v.view), 0, '', false from v where v.oid is not null
        union all
        select 4, v.made_at, v.view, format('alter view %%s set (security_invoker = true)', v.view), 'rights of whoever uses ' || v.view,
               '', 15, 'security_invoker', not exists (   -- without it, rows would be shown that a policy hides
                   select from pg_rewrite w join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = w.oid and d.refclassid = 'pg_class'::regclass
                   join pg_class c on c.oid = d.refobjid where w.ev_class = v.oid and c.relrowsecurity)
        from v where v.oid is not null
        union all
        select 5, v.made_at, i.identity || d.objsubid, format('comment on %%s %%s is %%L', case when d.objsubid > 0 then 'column' else i.type end, i.identity, d.description),
               'comment on ' || i.identity, '', 0, '', true
        from v join pg_description d on d.classoid = 'pg_class'::regclass and d.objoid = v.oid
        cross join lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) as i
        union all
        select distinct 5, v.made_at, v.name, format('comment on schema %%I is %%L', v.name, d.description), 'comment on version ' || v.name, '', 0, '', true
        from v join pg_description d on d.classoid = 'pg_namespace'::regclass and d.objoid = v.schema
    ) as s order by s.part, s.made_at, s.rank
"""

RIGHTS = f"""
    {_V}, has as (
        select distinct v.name as rank, 'schema ' || quote_ident(v.name) as label, '' as part, v.nspowner as owner, e.grantee, e.privilege_type, e.is_grantable
        from v cross join aclexplode(v.nspacl) as e
        union all
        select v.view, v.view, '', v.relowner, e.grantee, e.privilege_type, e.is_grantable from v cross join aclexplode(v.relacl) as e
        union all
        select v.view, v.view, format(' (%%I)', a.attname), v.relowner, e.grantee, e.privilege_type, e.is_grantable
        from v join pg_attribute a on a.attrelid = v.oid cross join aclexplode(a.attacl) as e
    )
    select format('grant %%s%%s on %%s to', h.privilege_type, h.part, h.label) as sql, case when h.is_grantable then ' with grant option' else '' end as tail,
           array[coalesce(r.rolname, '')]::text[] as role_names, array[coalesce(quote_ident(r.rolname), 'public')] as role_idents,
           'rights on ' || h.label as what, true as optional
    from has h left join pg_roles r on r.oid = h.grantee where h.grantee <> h.owner order by h.rank, h.part, h.privilege_type, r.rolname
"""

# The schema first: whoever is to own a view must be allowed to make one there.
OWNERS = f"""
    {_V}
    select format('alter %%s owner to', o.label) as sql, array[r.rolname]::text[] as role_names, array[quote_ident(r.rolname)] as role_idents,
           'owner of ' || o.label as what, true as optional
    from (
        select 1 as part, 'schema ' || quote_ident(v.name) as label, v.nspowner as owner from v union select 2, 'view ' || v.view, v.relowner from v where v.oid is not null
    ) as o join pg_roles r on r.oid = o.owner order by o.part, o.label
"""
