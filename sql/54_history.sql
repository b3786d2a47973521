-- The history of conflicts, at every site: what was noticed and settled anywhere travels in the cuts, beside the rows.
--
-- A step is never changed but for the number of its cut, and a site writes only its own; what another one tells is added, once.
-- So nothing waits here for anybody, a batch that comes twice adds nothing, and all sites come to the same, in whatever order.

create function syncagent._note_noticed() returns trigger
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off   -- planned when there are few steps, or none, for when there are many
    as $$
begin
    insert into syncagent.conflict_step (conflict, node, what, at)
    select n.id, s.node, 'noticed', n.noticed_at
    from fresh n cross join syncagent.local_site s
    -- else it was told; asked one by one, by the index: a join would read all of them each time
    where (select x.node from syncagent.conflict_step x where x.conflict = n.id and x.what = 'noticed' limit 1) is null;
    return null;
end
$$;
comment on function syncagent._note_noticed is 'a conflict of which no site has told was noticed here, and is told in the next cut';

create trigger noticed after insert on syncagent.conflict_record referencing new table as fresh
    for each statement execute function syncagent._note_noticed();
alter table syncagent.conflict_record enable always trigger noticed;   -- merges are made as a replica

create function syncagent._settlement(p_conflict uuid) returns syncagent.conflict_step
    language sql stable
    as $$
    select s from syncagent.conflict_step s where s.conflict = p_conflict and s.what <> 'noticed' order by s.hlc desc, s.node desc limit 1
$$;
comment on function syncagent._settlement is 'the newest step by which somebody has settled a conflict, or has taken that back, at whatever site; null if nobody has';

create function syncagent._untold() returns boolean
    language sql stable
    as $$
    select exists (select from syncagent.conflict_step c where c.node = (select s.node from syncagent.local_site s) and c.cut is null)
$$;
comment on function syncagent._untold is 'whether this site has steps of conflicts that are in no cut yet';

create function syncagent._told_conflicts(p_node integer, p_after bigint, p_upto bigint)
    returns table (conflict uuid, cut bigint, hlc bigint, what text, at timestamptz, by_role name, writes jsonb, record jsonb)
    language sql stable
    as $$
    select t.*
    from (
        select s.conflict, s.cut, s.hlc, s.what, s.at, s.by_role, s.writes,
               case s.what when 'noticed' then (select to_jsonb(c) from syncagent.conflict_record c where c.id = s.conflict) end as record   -- one by one, as above
        from syncagent.conflict_step s
        where s.node = p_node and s.cut > p_after and s.cut <= p_upto
        offset 0
    ) as t
    where t.what <> 'noticed' or t.record is not null
    order by t.conflict
$$;
comment on function syncagent._told_conflicts is 'what the cuts of a node tell of conflicts: a step, and the conflict with the first of them; what is forgotten here is told no more';

create function syncagent._take_conflicts(p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off   -- as above
    as $$
begin
    -- The steps first: by them it is known that a conflict was told. One that settles it may come before it, in another part of a knot.
    insert into syncagent.conflict_step (conflict, node, hlc, cut, what, at, by_role, writes)
    select s.conflict, p_origin, s.hlc, s.cut, s.what, s.at, s.by_role, s.writes
    from pg_temp.stage_conflicts s
    order by s.conflict
    on conflict (conflict, node, hlc) do update set cut = excluded.cut;
    insert into syncagent.conflict_record
    select c.*
    from pg_temp.stage_conflicts s cross join lateral jsonb_populate_record(null::syncagent.conflict_record, s.record) as c
    -- mostly both have noticed it, and made the record themselves
    where s.record is not null and (select r.kind from syncagent.conflict_record r where r.id = s.conflict limit 1) is null
    order by c.id
    on conflict (id) do nothing;
end
$$;
comment on function syncagent._take_conflicts is 'add what a batch tells of conflicts to what is known of them here';
