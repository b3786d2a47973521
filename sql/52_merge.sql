-- Strategy `merge`: by column (52_columns), and what two sites write at once in one column is not decided, but joined.
--
-- How is chosen for each column: a `counter` keeps what each site has added, a `set` what was added and not seen by who removed it, `append` every
-- piece that was appended; of any
-- other column the writes that no other has read stay, as its *siblings*, and the table shows the newest of them, their `max` or
-- `min`, or what a function of the application makes of them (52_functions). To show is not to write: every site that has the same siblings shows the same.
--
-- Instead of one entry the register of a column has one for each node that wrote it: {"node": [stamp, cut, ...]}, the newest write,
-- and behind it
--   of a counter   since, total: what the node has added in its cuts since < .. <= cut, an unbroken stretch
--   of a set       {"element": cut of its add, ...}: what the node added and nobody has removed
--   of what is appended to   {"stamp": [cut, length], ...}: its pieces, of which the value ends with those of all nodes, in the order of
--                  their stamps; and whether it has done more than append, which replaces all that it had read
--   of a sibling   its value as text, if there are several
-- A cut is null while there is none. Two states of a column are joined by what each side has seen: what comes, its context; this
-- site, its frontier, and all that it wrote. A column of which one side has seen all is the other side's, to the byte. Else an
-- element's add, a piece, or a sibling, stays if both have it, or if the side that lacks it has not seen it; to one side's count is added what
-- that side has not seen of the other's. A stretch that goes on at its writer may have been dropped elsewhere: then it is what
-- the other side has not seen of ours that is told, for entries are dropped all together only.
--
-- The parts of a knot are states of different sites: a row that came in one has, for the next, seen what that part had (`knotted`).
--
-- tests/model/merging.py and appended.py are this page as programs; docs/decisions/0017-strategies.md says what it found.

-- Values: sets and what is appended to, as members -------------------------------------------------------------

create function syncagent._members(p_value text, p_of text) returns text[]
    language plpgsql immutable
    as $$
begin
    if p_value is null then
        return '{}';
    elsif p_of = 'array' then
        return array(select u.m from unnest(p_value::text[]) with ordinality as u (m, n) where u.m is not null order by u.n);
    elsif p_of = 'text' then
        return string_to_array(p_value, null);
    elsif jsonb_typeof(p_value::jsonb) <> 'array' then
        return array[p_value];
    end if;
    return array(select e.m::text from jsonb_array_elements(p_value::jsonb) with ordinality as e (m, n) order by e.n);
end
$$;
comment on function syncagent._members is 'the members of an array, of a JSON array, or the characters of a text, as text; one that is null is none';

create function syncagent._of_members(p_members text[], p_of text) returns text
    language sql immutable
    as $$
    select case p_of when 'array' then p_members::text when 'text' then array_to_string(p_members, '')
                     else (select coalesce(jsonb_agg(u.m::jsonb order by u.n), '[]')::text from unnest(p_members) with ordinality as u (m, n)) end
$$;
comment on function syncagent._of_members is 'the value that has these members, in this order';

create function syncagent._in_order(p_members text[]) returns text[]
    language sql immutable
    as $$
    -- the same at every site, whatever its collation; whole numbers as people count
    select array(select distinct_member.m from (select distinct u.m from unnest(p_members) as u (m)) as distinct_member
                 order by case when m ~ '^-?\d{1,18}$' then m::bigint end nulls last, m collate "C")
$$;
comment on function syncagent._in_order is 'the members of a set that was joined';

create function syncagent._set_delta(p_old text, p_new text, p_of text) returns jsonb
    language sql immutable
    as $$
    select jsonb_build_object('+', to_jsonb(array(select unnest(v.new) except select unnest(v.old))), '-', to_jsonb(array(select unnest(v.old) except select unnest(v.new))))
    from (select syncagent._members(p_old, p_of), syncagent._members(p_new, p_of)) as v (old, new)
$$;
comment on function syncagent._set_delta is 'what a write has added to a set, and removed';

create function syncagent._appended(p_old text, p_new text, p_of text) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_old text[];
    v_new text[];
begin
    if p_of = 'text' then
        return case when left(p_new, length(p_old)) collate "C" = p_old then jsonb_build_object('whole', false, 'added', length(p_new) - length(p_old))
                    else jsonb_build_object('whole', true, 'added', length(p_new)) end;
    end if;
    v_old := syncagent._members(p_old, p_of);
    v_new := syncagent._members(p_new, p_of);
    return case when v_new[:cardinality(v_old)] = v_old then jsonb_build_object('whole', false, 'added', cardinality(v_new) - cardinality(v_old))
                else jsonb_build_object('whole', true, 'added', cardinality(v_new)) end;
end
$$;
comment on function syncagent._appended is 'how much a write has appended; or, if it did something else, that it has replaced the whole, and how long that is';

create function syncagent._counted(p_value numeric) returns numeric
    language sql immutable
    as $$ select case p_value when 'NaN' then 0 else p_value end $$;
comment on function syncagent._counted is 'what a value is worth where counts are added: NaN, which nobody can add to, nothing';

create function syncagent._added_here(p_old numeric, p_new numeric, p_column name) returns numeric
    language plpgsql immutable
    as $$
begin
    if p_new = 'NaN' then
        raise exception 'column % cannot be NaN: it is a counter', quote_ident(p_column)
            using errcode = 'SA004', hint = 'write a number; of a column that must be able to hold NaN, choose another way to merge it';
    end if;
    return p_new - syncagent._counted(p_old);
end
$$;
comment on function syncagent._added_here is 'what a write adds to a counter; an error if the sum is not a number';

create function syncagent._wrapped(p_value numeric, p_how jsonb) returns numeric
    language sql immutable
    as $$
    -- Each site adds in its own order: what the type cannot hold wraps around, and is right again once the sum fits.
    select x.shifted - floor(x.shifted / x.size) * x.size + x.low
    from (select p_value - (p_how ->> 'low')::numeric, (p_how ->> 'size')::numeric, (p_how ->> 'low')::numeric) as x (shifted, size, low)
$$;
comment on function syncagent._wrapped is 'a count as its type holds it';

-- Registers ----------------------------------------------------------------------------------------------------

create function syncagent._parts_of(p_registers jsonb) returns table (key text, node integer, value jsonb)
    language sql immutable
    as $$
    select e.key, (e.value ->> 1)::integer, e.value from jsonb_each(p_registers) as e where jsonb_typeof(e.value) = 'array'
    union all
    select e.key, p.key::integer, jsonb_build_array(p.value -> 0, p.key::integer, p.value -> 1)
    from jsonb_each(p_registers) as e cross join lateral jsonb_each(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end) as p
$$;
comment on function syncagent._parts_of is 'what registers are made of, by name: each an entry [stamp, node, cut]';

create function syncagent._part_sides(p_key uuid, p_registers jsonb, p_ended boolean, p_stamp uuid, p_node integer, p_cut bigint)
    returns table (name text, stamp uuid, node integer, cut bigint)
    language sql immutable
    as $$
    select e.key, (e.value ->> 0)::uuid, e.node, (e.value ->> 2)::bigint from syncagent._parts_of(p_registers) as e where not p_ended
    union all
    select null, p_stamp, p_node, p_cut where p_ended
$$;
comment on function syncagent._part_sides is 'as _sides, where the strategy is merge';

create function syncagent._parts_stable(p_registers jsonb, p_stable jsonb, p_plan jsonb) returns boolean
    language plpgsql immutable
    as $$
begin
    return not exists (select from syncagent._parts_of(p_registers) as e
                       where not coalesce((e.value ->> 2)::bigint <= (p_stable ->> e.node::text)::bigint, false))
       and not exists (select from jsonb_each(p_registers) as e   -- siblings stay until somebody has read them, and written
                       where coalesce(p_plan -> e.key ->> 'kind', 'latest') = 'latest'
                         and (select count(*) from jsonb_object_keys(case jsonb_typeof(e.value) when 'object' then e.value else '{}' end)) > 1);
end
$$;
comment on function syncagent._parts_stable is 'whether every site has all of these registers, and nothing is left to be settled in them';

create function syncagent._op(p_op "char", p_columns name[], p_deltas jsonb, p_stamp uuid) returns jsonb
    language sql immutable
    as $$ select jsonb_build_array(p_stamp, p_op, to_jsonb(p_columns::text[]), p_deltas) $$;
comment on function syncagent._op is 'what one log entry says of its rows';

create function syncagent._with_pieces(p_pieces jsonb, p_added jsonb, p_cut jsonb) returns jsonb
    language sql immutable
    as $$
    select p_pieces || coalesce((
        select jsonb_object_agg(a.key, jsonb_build_array(p_cut, a.value::integer + coalesce((p_pieces -> a.key ->> 1)::integer, 0))) from jsonb_each(p_added) as a), '{}')
$$;
comment on function syncagent._with_pieces is 'the pieces of a node with what it has appended since: {"stamp": length}; what a transaction appends is one piece';

create function syncagent._with_op(p_registers jsonb, p_op jsonb, p_known jsonb, p_me integer, p_next bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_me     text := p_me::text;
    v_cut    jsonb := coalesce(to_jsonb(p_next), 'null');
    v_name   text;
    v_delta  jsonb;
    v_column jsonb;
    v_own    jsonb;
begin
    for v_number in 0 .. coalesce(jsonb_array_length(p_op -> 2), 0) - 1 loop   -- no statement: called for each of many rows
        v_name := p_op -> 2 ->> v_number;
        v_column := coalesce(p_registers -> v_name, '{}');
        v_own := v_column -> v_me;
        continue when (p_known -> v_name -> v_me ->> 0)::uuid >= (p_op ->> 0)::uuid;   -- known already, before a cut had it
        v_delta := p_op -> 3 -> v_name;
        case
            when v_delta is null or v_delta = 'null' then
                v_column := jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut));
            when v_delta ? 'whole' then
                if (v_delta ->> 'whole')::boolean then
                    select jsonb_object_agg(p.key, jsonb_set(p.value, '{2}', '{}')) into v_column from jsonb_each(v_column) as p;
                end if;
                v_column := coalesce(v_column, '{}') || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut, syncagent._with_pieces(
                    coalesce(v_column -> v_me -> 2, '{}'), coalesce(v_delta -> 'pieces', jsonb_build_object(p_op ->> 0, v_delta -> 'added')), v_cut),
                    (v_delta ->> 'whole')::boolean or coalesce((v_own ->> 3)::boolean, false)));
            when jsonb_typeof(v_delta) = 'object' then
                select jsonb_object_agg(p.key, case when p.value -> 2 ?| g.gone then jsonb_set(p.value, '{2}', (p.value -> 2) - g.gone) else p.value end) into v_column
                from jsonb_each(v_column || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut, coalesce(v_own -> 2, '{}')))) as p
                cross join (select array(select jsonb_array_elements_text(v_delta -> '-'))) as g (gone);
                v_column := jsonb_set(v_column, array[v_me, '2'], v_column -> v_me -> 2
                    || coalesce((select jsonb_object_agg(e.m, v_cut) from jsonb_array_elements_text(v_delta -> '+') as e (m)), '{}'));
            else
                v_column := v_column || jsonb_build_object(v_me, jsonb_build_array(p_op -> 0, v_cut,
                    case when v_own is null then p_next - 1 else (v_own ->> 2)::bigint end, coalesce((v_own ->> 3)::numeric, 0) + case when jsonb_typeof(v_delta) = 'number' then v_delta::numeric else 0 end));
        end case;
        p_registers := p_registers || jsonb_build_object(v_name, v_column);
    end loop;
    return p_registers;
end
$$;
comment on function syncagent._with_op is 'registers after one write of this site, unless they had it as they were known: all writes of a transaction have one stamp';

create function syncagent._cut_parts(p_registers jsonb, p_me integer, p_next bigint) returns jsonb
    language plpgsql immutable
    as $$
declare
    v_me   text := p_me::text;
    v_name text;
    v_own  jsonb;
begin
    for v_name, v_own in
        select e.key, e.value -> v_me from jsonb_each(p_registers) as e where jsonb_typeof(e.value) = 'object' and e.value -> v_me -> 1 = 'null'
    loop
        v_own := jsonb_set(v_own, '{1}', to_jsonb(p_next));
        if jsonb_array_length(v_own) = 4 and v_own -> 2 = 'null' and jsonb_typeof(v_own -> 3) = 'number' then
            v_own := jsonb_set(v_own, '{2}', to_jsonb(p_next - 1));
        elsif jsonb_typeof(v_own -> 2) = 'object' then
            v_own := jsonb_set(v_own, '{2}', (
                select coalesce(jsonb_object_agg(m.key, case when m.value = 'null' then to_jsonb(p_next)
                           when m.value -> 0 = 'null' then jsonb_set(m.value, '{0}', to_jsonb(p_next)) else m.value end), '{}')
                from jsonb_each(v_own -> 2) as m));
        end if;
        p_registers := jsonb_set(p_registers, array[v_name, v_me], v_own);
    end loop;
    return p_registers;
end
$$;
comment on function syncagent._cut_parts is 'registers once this site''s next cut has what it wrote';

create function syncagent._merge_written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                         p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                         out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_life   jsonb;
    v_newest record;
    v_known  jsonb;
    v_op     jsonb;
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if p_new is null then
        return;   -- nothing was written here since
    end if;
    select jsonb_build_array(o.op -> 0, p_me, p_next) into v_life from jsonb_array_elements(p_log) with ordinality as o (op, n)
    where o.op ->> 1 = 'I' or o.op ->> 1 = 'U' and o.op -> 2 = 'null' order by o.n desc limit 1;
    if not p_alive then
        if p_gone and (stamp is null or p_new >= stamp or not deleted) then
            registers := syncagent._joined_registers(syncagent._life(registers), case when v_life is null then '{}' else jsonb_build_object('', v_life) end);
            stamp := p_new; node := p_me; cut := p_next; deleted := true;
        end if;
        return;
    elsif deleted then
        if p_new <= stamp then
            return;   -- it lives under a newer tombstone, and will be written anew
        end if;
        if v_life is null or (v_life ->> 0)::uuid <= stamp then
            v_life := jsonb_build_array(p_new, p_me, p_next);
        end if;
        deleted := false; registers := '{}';
    end if;
    if v_life ->> 0 = registers -> '' ->> 0 then
        registers := registers || jsonb_build_object('', v_life);   -- known before a cut had it
    elsif v_life is not null and coalesce((v_life ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) then
        registers := jsonb_build_object('', v_life);
    end if;
    if p_next is not null then
        registers := syncagent._cut_parts(registers, p_me, p_next);   -- first: what is written on top of it goes on in the same cut
    end if;
    v_known := registers;
    for v_op in
        select o.op from jsonb_array_elements(p_log) with ordinality as o (op, n)
        where o.op ->> 1 = 'U' and o.op -> 2 <> 'null' and coalesce((o.op ->> 0)::uuid > (registers -> '' ->> 0)::uuid, true) order by o.n
    loop
        registers := syncagent._with_op(registers, v_op, v_known, p_me, p_next);
    end loop;
    select e.value into v_newest from syncagent._parts_of(registers) as e order by (e.value ->> 0) collate "C" desc, e.value ->> 2 is null limit 1;
    if found and coalesce((v_newest.value ->> 0)::uuid >= stamp, true) then
        stamp := (v_newest.value ->> 0)::uuid; node := (v_newest.value ->> 1)::integer; cut := (v_newest.value ->> 2)::bigint;
    end if;
end
$$;
comment on function syncagent._merge_written is 'as _written, where the strategy is merge: p_log are the log entries in their order, as _op says them';

-- Joining ------------------------------------------------------------------------------------------------------

create function syncagent._unseen(p_parts jsonb, p_seen jsonb, p_me integer) returns boolean
    language sql immutable
    as $$
    select exists (select from jsonb_each(p_parts) as p
                   where p.value -> 1 = 'null' or p.key::integer is distinct from p_me and (p.value ->> 1)::bigint > coalesce((p_seen ->> p.key)::bigint, 0))
$$;
comment on function syncagent._unseen is 'whether a side that has seen these cuts, and all of a node of its own, has not seen all of the writes in a column';

create function syncagent._parts_newer(p_theirs jsonb, p_mine jsonb, p_seen jsonb, p_me integer) returns text[]
    language sql immutable
    as $$
    select array(
        select e.key from jsonb_each(p_theirs) as e
        where jsonb_typeof(e.value) = 'object' and exists (
            select from jsonb_each(e.value) as p
            where p.key::integer <> p_me and (p.value ->> 1)::bigint > coalesce((p_seen ->> p.key)::bigint, 0)
              and not coalesce((p_mine -> e.key -> p.key ->> 1)::bigint >= (p.value ->> 1)::bigint, false)))
$$;
comment on function syncagent._parts_newer is 'the columns of a state that hold writes which this site has not seen';

create function syncagent._own_newer(p_mine jsonb, p_waiting jsonb, p_me integer) returns text[]
    language sql immutable
    as $$
    select array(select e.key from jsonb_each(p_mine) as e
                 where jsonb_typeof(e.value) = 'object' and (e.value -> p_me::text) is not null
                   and coalesce((e.value -> p_me::text ->> 0)::uuid > (p_waiting -> e.key -> p_me::text ->> 0)::uuid, true))
$$;
comment on function syncagent._own_newer is 'the columns that were written here on top of a row that waits';

create function syncagent._added(p_parts jsonb, p_other jsonb, p_seen jsonb, p_me integer) returns numeric
    language plpgsql immutable
    as $$
declare
    v_total numeric := 0;
    v_seen  bigint;
    r       record;
begin
    for r in select p.key, (p.value ->> 1)::bigint as cut, (p.value ->> 2)::bigint as since, (p.value ->> 3)::numeric as total, p_other -> p.key as other
             from jsonb_each(p_parts) as p
    loop
        continue when r.key::integer = p_me;
        v_seen := coalesce((p_seen ->> r.key)::bigint, 0);
        continue when r.cut <= v_seen;
        if (r.other ->> 2)::bigint = r.since then
            continue when (r.other ->> 1)::bigint >= r.cut;
            v_total := v_total + r.total - (r.other ->> 3)::numeric;
        elsif coalesce(r.since >= v_seen, true) then
            v_total := v_total + r.total;
        else
            return null;
        end if;
    end loop;
    return v_total;
end
$$;
comment on function syncagent._added is 'what one side has added to a counter and the other, which has these entries and has seen these cuts, not seen; null if that is not told';

create function syncagent._newest_parts(p_one jsonb, p_other jsonb) returns jsonb
    language sql immutable
    as $$
    select coalesce(jsonb_object_agg(k.node, case when p_one -> k.node -> 1 = 'null' or coalesce((p_one -> k.node ->> 1)::bigint >= (p_other -> k.node ->> 1)::bigint, p_one ? k.node)
                                                  then p_one -> k.node else p_other -> k.node end), '{}')
    from jsonb_object_keys(p_one || p_other) as k (node)
$$;
comment on function syncagent._newest_parts is 'of each node the newer entry';

create function syncagent._adds(p_parts jsonb) returns table (member text, node integer, cut bigint)
    language sql immutable
    as $$ select m.key, p.key::integer, m.value::text::bigint from (select x.key, x.value -> 2 as adds from jsonb_each(p_parts) as x) as p
          cross join lateral (select a.key, nullif(a.value, 'null') as value from jsonb_each(p.adds) as a) as m $$;
comment on function syncagent._adds is 'the adds of a set';

create function syncagent._join_set(p_mine jsonb, p_theirs jsonb, p_here text[], p_there text[], p_seen jsonb, p_context jsonb, p_me integer, p_returns boolean,
                                    out parts jsonb, out members text[])
    language plpgsql immutable
    as $$
#variable_conflict use_column
declare
    v_live jsonb;   -- node -> {member: cut}
begin
    with ours as materialized (select * from syncagent._adds(p_mine)), theirs as materialized (select * from syncagent._adds(p_theirs)),
    live as materialized (
        select o.* from ours o
        where o.cut is null or o.cut > coalesce((p_context ->> o.node::text)::bigint, 0) or exists (select from theirs t where (t.member, t.node, t.cut) = (o.member, o.node, o.cut))
        union
        select t.* from theirs t
        where t.node <> p_me and t.cut > coalesce((p_seen ->> t.node::text)::bigint, 0) or exists (select from ours o where (t.member, t.node, t.cut) = (o.member, o.node, o.cut))
    ), base as (
        select h.member from unnest(p_here) as h (member)
        where h.member = any (p_there)
          and (not exists (select from ours o where o.member = h.member) or not exists (select from theirs t where t.member = h.member))
        union
        select t.member from unnest(p_there) as t (member) where p_returns   -- what is here is older than all that was forgotten there
    )
    select syncagent._in_order(array(select l.member from live l union select b.member from base b)),
           (select jsonb_object_agg(n.node, n.adds) from (select l.node, jsonb_object_agg(l.member, l.cut) as adds from live l group by l.node) as n)
    into members, v_live;
    select jsonb_object_agg(p.key, jsonb_set(p.value, '{2}', coalesce(v_live -> p.key, '{}'))) into parts
    from jsonb_each(syncagent._newest_parts(p_mine, p_theirs)) as p;
end
$$;
comment on function syncagent._join_set is 'two states of a set: entries, and the members that are here and there';

create function syncagent._pieces(p_parts jsonb, p_members text[]) returns table (stamp text, node text, cut bigint, length integer, members text[])
    language sql immutable
    as $$
    select x.stamp, x.node, x.cut, x.length, p_members[cardinality(p_members) - x.rest + 1:cardinality(p_members) - x.rest + x.length]
    from (select m.key as stamp, p.key as node, (m.value ->> 0)::bigint as cut, (m.value ->> 1)::integer as length,
                 sum((m.value ->> 1)::integer) over (order by m.key collate "C" desc, p.key desc)::integer as rest
          from jsonb_each(p_parts) as p cross join lateral jsonb_each(p.value -> 2) as m) as x
$$;
comment on function syncagent._pieces is 'what was appended to a column, and nobody has replaced: a value ends with all of it, in the order of the stamps';

create function syncagent._join_pieces(p_mine jsonb, p_theirs jsonb, p_here text[], p_there text[], p_seen jsonb, p_context jsonb, p_me integer, p_returns boolean,
                                       out parts jsonb, out members text[])
    language plpgsql immutable
    as $$
#variable_conflict use_column
declare
    v_whole_here  boolean := exists (select from jsonb_each(p_mine) as p where (p.value ->> 3)::boolean);
    v_whole_there boolean := exists (select from jsonb_each(p_theirs) as p where (p.value ->> 3)::boolean);
    v_live        jsonb;   -- node -> {stamp: [cut, length]}
begin
    with ours as materialized (select * from syncagent._pieces(p_mine, p_here)), theirs as materialized (select * from syncagent._pieces(p_theirs, p_there)),
    live as materialized (   -- what the other side has seen, and lacks, was replaced, or is in its beginning by now
        select o.stamp, o.node, coalesce(o.cut, t.cut) as cut, o.length, o.members, false as dropped
        from ours o left join theirs t on (t.stamp, t.node) = (o.stamp, o.node)
        where t.stamp is not null or o.cut is null or o.cut > coalesce((p_context ->> o.node)::bigint, 0) or not (v_whole_there or p_returns)
        union all
        select t.stamp, t.node, t.cut, t.length, t.members, not n.unseen
        from theirs t cross join lateral (select t.node::integer <> p_me and t.cut > coalesce((p_seen ->> t.node)::bigint, 0) as unseen) as n
        where not exists (select from ours o where (o.stamp, o.node) = (t.stamp, t.node)) and (n.unseen or p_returns or not v_whole_here)
    )
    select array(select u.m from (
               select '' as stamp, '' as node, b.m, b.n
               from unnest(case when v_whole_here or v_whole_there then '{}'
                                when p_returns or exists (select from live l where l.dropped) then p_there[:cardinality(p_there) - (select coalesce(sum(t.length), 0)::integer from theirs t)]
                                else p_here[:cardinality(p_here) - (select coalesce(sum(o.length), 0)::integer from ours o)] end) with ordinality as b (m, n)
               union all
               select l.stamp, l.node, e.m, e.n from live l cross join lateral unnest(l.members) with ordinality as e (m, n)) as u
               order by u.stamp collate "C", u.node, u.n),
           (select jsonb_object_agg(n.node, n.pieces) from (select l.node, jsonb_object_agg(l.stamp, jsonb_build_array(l.cut, l.length)) as pieces from live l group by l.node) as n)
    into members, v_live;
    select jsonb_object_agg(p.key, jsonb_build_array(p.value -> 0, p.value -> 1, coalesce(v_live -> p.key, '{}'),
               coalesce((p_mine -> p.key ->> 3)::boolean, false) or coalesce((p_theirs -> p.key ->> 3)::boolean, false))) into parts
    from jsonb_each(syncagent._newest_parts(p_mine, p_theirs)) as p;
end
$$;
comment on function syncagent._join_pieces is 'two states of a column that is appended to: entries, and the members that are here and there';

create function syncagent._gone_on(p_waiting text, p_here text, p_registers jsonb, p_waited jsonb, p_me integer, p_of text) returns text
    language sql immutable
    as $$
    -- of a row that waits nothing is in the table but what it was before, and what was appended here since
    select case when (own.part ->> 3)::boolean and not coalesce((own.waited ->> 3)::boolean, false) then p_here
                else syncagent._of_members(syncagent._members(p_waiting, p_of) || coalesce((
                    select array_agg(e.m order by x.stamp collate "C", e.n)
                    from syncagent._pieces(p_registers, syncagent._members(p_here, p_of)) as x cross join lateral unnest(x.members) with ordinality as e (m, n)
                    where x.node = p_me::text and x.stamp > coalesce(own.waited ->> 0, '')), '{}'), p_of) end
    from (select p_registers -> p_me::text, p_waited -> p_me::text) as own (part, waited)
$$;
comment on function syncagent._gone_on is 'what is appended to, of a row that waits, with what was appended here on top of it';

create function syncagent._join_siblings(p_mine jsonb, p_theirs jsonb, p_here text, p_there text, p_seen jsonb, p_context jsonb, p_me integer) returns jsonb
    language sql immutable
    as $$
    with ours as materialized (
        select p.key, case when s.single then jsonb_build_array(p.value -> 0, p.value -> 1, p_here, p.value -> 3) else p.value end as part
        from jsonb_each(p_mine) as p cross join (select count(*) = 1 from jsonb_object_keys(p_mine)) as s (single)
    ), theirs as materialized (
        select p.key, case when s.single then jsonb_build_array(p.value -> 0, p.value -> 1, p_there, p.value -> 3) else p.value end as part
        from jsonb_each(p_theirs) as p cross join (select count(*) = 1 from jsonb_object_keys(p_theirs)) as s (single)
    )
    select jsonb_object_agg(k.key, k.part) from (
        select o.key, o.part from ours o left join theirs t on t.key = o.key
        where o.part -> 1 = 'null' or (o.part ->> 1)::bigint > coalesce((p_context ->> o.key)::bigint, 0) or o.part -> 1 = t.part -> 1
        union all
        select t.key, t.part from theirs t left join ours o on o.key = t.key
        where t.key::integer <> p_me and (t.part ->> 1)::bigint > coalesce((p_seen ->> t.key)::bigint, 0) and t.part -> 1 is distinct from o.part -> 1
    ) as k
$$;
comment on function syncagent._join_siblings is 'the siblings that stay of two states of a column, with their values';

create function syncagent._shown(p_siblings jsonb, p_how jsonb) returns text
    language plpgsql stable
    as $$
declare
    v_values text[];
    v_value  text;
begin
    v_values := array(select p.value ->> 2 from jsonb_each(p_siblings) as p order by (p.value ->> 0) collate "C");
    case p_how ->> 'kind'
        when 'max', 'min' then
            execute format('select v from unnest($1) with ordinality as u (v, n) order by %s %s nulls last, n desc limit 1', p_how ->> 'by',
                           case p_how ->> 'kind' when 'max' then 'desc' else 'asc' end) into v_value using v_values;
            return v_value;
        else
            return v_values[cardinality(v_values)];
    end case;
end
$$;
comment on function syncagent._shown is 'what the table shows of several siblings';

create function syncagent._join_columns(p_plan jsonb, p_me integer, p_mine jsonb, p_theirs jsonb, p_newer text[], p_here jsonb, p_there jsonb,
                                        p_seen jsonb, p_context jsonb, p_returns boolean,
                                        out registers jsonb, out taken text[], out shown jsonb)
    language plpgsql stable
    set plan_cache_mode = force_generic_plan   -- called for each of many rows, where the session plans anew at each call
    as $$
declare
    v_name   text;
    v_how    jsonb;
    v_mine   jsonb;
    v_theirs jsonb;
    v_value  text;
    v_amount numeric;
    v_set    record;
begin
    registers := p_mine || syncagent._joined_registers(syncagent._life(p_mine), syncagent._life(p_theirs)); taken := '{}'; shown := '{}';
    foreach v_name in array p_newer loop
        v_how := coalesce(p_plan -> v_name, '{"kind": "latest"}');
        v_mine := coalesce(p_mine -> v_name, '{}');
        v_theirs := p_theirs -> v_name;
        if not syncagent._unseen(v_mine, p_context, null) then
            taken := taken || v_name;
            case v_how ->> 'kind'   -- nothing of these that the other side has dropped is dropped here but with all the rest
                when 'counter' then v_theirs := syncagent._newest_parts(v_theirs, v_mine);
                when 'append' then
                    v_theirs := (syncagent._join_pieces(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'),
                        syncagent._members(p_there ->> v_name, v_how ->> 'of'), p_seen, p_context, p_me, p_returns)).parts;
                when 'set' then
                    select jsonb_object_agg(p.key, case when v_theirs ? p.key then p.value else jsonb_set(p.value, '{2}', (
                               select coalesce(jsonb_object_agg(m.key, m.value), '{}') from jsonb_each(p.value -> 2) as m
                               where m.key = any (syncagent._members(p_there ->> v_name, v_how ->> 'of')))) end) into v_theirs
                    from jsonb_each(v_mine || v_theirs) as p;
                else null;
            end case;
            registers := registers || jsonb_build_object(v_name, v_theirs);
            continue;
        end if;
        case v_how ->> 'kind'
            when 'counter' then
                v_amount := case when not p_returns then syncagent._counted((p_here ->> v_name)::numeric) + syncagent._added(v_theirs, v_mine, p_seen, p_me) end;
                if v_amount is null then
                    v_amount := syncagent._counted((p_there ->> v_name)::numeric) + syncagent._added(v_mine, v_theirs, p_context, null);
                end if;
                v_value := syncagent._wrapped(v_amount, v_how)::text;
                v_mine := syncagent._newest_parts(v_mine, v_theirs);
            when 'set' then
                v_set := syncagent._join_set(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'), syncagent._members(p_there ->> v_name, v_how ->> 'of'),
                                             p_seen, p_context, p_me, p_returns);
                v_mine := v_set.parts;
                v_value := syncagent._of_members(v_set.members, v_how ->> 'of');
            when 'append' then
                v_set := syncagent._join_pieces(v_mine, v_theirs, syncagent._members(p_here ->> v_name, v_how ->> 'of'), syncagent._members(p_there ->> v_name, v_how ->> 'of'),
                                                p_seen, p_context, p_me, p_returns);
                v_mine := v_set.parts;
                v_value := syncagent._of_members(v_set.members, v_how ->> 'of');
            else
                v_mine := syncagent._join_siblings(v_mine, v_theirs, p_here ->> v_name, p_there ->> v_name, p_seen, p_context, p_me);
                v_value := syncagent._shown(v_mine, v_how);
                if (select count(*) = 1 from jsonb_object_keys(v_mine)) then   -- its value is the column's
                    select jsonb_object_agg(p.key, jsonb_build_array(p.value -> 0, p.value -> 1)) into v_mine from jsonb_each(v_mine) as p;
                end if;
        end case;
        registers := registers || jsonb_build_object(v_name, v_mine);
        shown := shown || jsonb_build_object(v_name, v_value);
    end loop;
end
$$;
comment on function syncagent._join_columns is 'two states of one life of a row: its registers; columns that are taken as they came; and what others show now. p_newer: columns with writes that this site has not seen; p_here and p_there: the values as text; p_seen and p_context: what this site, and who sent the row, had seen; p_returns: this site returns, and its rows are older than what it has seen';

-- Per table ----------------------------------------------------------------------------------------------------

create function syncagent._merge_capture_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.capture_{id}_columns() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp set enable_nestloop = off {pinned}
    as $$
begin
    {guard}
    insert into syncagent.log (xid, relation, op, hlc, keys {odd_column}, columns, deltas)
    select pg_current_xact_id(), {id}, 'U', syncagent._tick(), array_agg(k.key) {odd_agg}, k.columns, k.deltas
    from (
        select k.*, (row_number() over (partition by k.columns, k.deltas) - 1) / 10000 as chunk
        from (
            select {key} as key {odd_value}, case when {o_here} then array_remove(array[{changed_columns}]::name[], null) end as columns,
                   case when {o_here} then {deltas} end as deltas
            from changed t left join before o on {o_eq_t}
        ) as k
        where k.columns is distinct from '{}'   -- nothing was changed
    ) as k
    group by k.columns, k.deltas, k.chunk;
    return null;
end
$$;
$sql$ $template$;

create function syncagent._merge_how(p_table regclass, p_column name, p_kind text) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_base regtype;
    v_mod  integer;
    v_of   text;
    v_size numeric;
    v_unit numeric;
begin
    if p_kind like 'function:%' then
        return '{"kind": "function"}';   -- what it is may change, or be gone: what is made of the table's functions does not
    end if;
    select syncagent._base_type(a.atttypid), case when t.typtype = 'd' then t.typtypmod else a.atttypmod end into v_base, v_mod
    from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = p_table and a.attname = p_column and not a.attisdropped;
    v_of := case when v_base = 'jsonb'::regtype then 'jsonb' when v_base in ('text'::regtype, 'varchar'::regtype) then 'text'
                 when (select t.typelem <> 0 and t.typsubscript = 'array_subscript_handler'::regproc and t.typdelim = ',' from pg_type t where t.oid = v_base) then 'array' end;
    case p_kind
        when 'counter' then
            v_size := case v_base when 'smallint'::regtype then 65536 when 'integer'::regtype then 4294967296 when 'bigint'::regtype then 18446744073709551616 end;
            if v_size is not null then
                return jsonb_build_object('kind', p_kind, 'low', -trunc(v_size / 2), 'size', v_size);
            elsif v_base = 'numeric'::regtype and v_mod >= 4 then
                v_unit := power(10::numeric, -((((v_mod - 4) & 2047) # 1024) - 1024));   -- a scale may be negative
                v_size := power(10::numeric, (v_mod - 4) >> 16 & 65535) * v_unit;
                return jsonb_build_object('kind', p_kind, 'low', v_unit - v_size, 'size', 2 * v_size - v_unit);
            end if;
        when 'set' then
            if v_of in ('array', 'jsonb') then
                return jsonb_build_object('kind', p_kind, 'of', v_of);
            end if;
        when 'append' then
            if v_of is not null then
                return jsonb_build_object('kind', p_kind, 'of', v_of);
            end if;
        when 'max', 'min' then
            if exists (select from pg_opclass o join pg_am m on m.oid = o.opcmethod and m.amname = 'btree' and o.opcdefault
                       where o.opcintype = v_base or v_base = 'varchar'::regtype and o.opcintype = 'text'::regtype)
               or (select t.typtype = 'e' from pg_type t where t.oid = v_base) then
                return jsonb_build_object('kind', p_kind, 'by', format('v::%s%s', format_type(v_base, -1),
                    case when (select t.typcollation <> 0 from pg_type t where t.oid = v_base) then ' collate "C"' else '' end));
            end if;
        when 'latest' then
            return jsonb_build_object('kind', p_kind);
        else null;
    end case;
    return null;
end
$$;
comment on function syncagent._merge_how is 'how a column is joined, as _join_columns takes it; null if its type does not go with that';

create function syncagent._merge_obstacles(p_table regclass, p_strategy text, p_merges jsonb) returns table (problem text, hint text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with m as (
        select e.key as name, e.value #>> '{}' as kind, a.attnum, a.attnotnull, a.attgenerated <> '' as generated, format_type(a.atttypid, a.atttypmod) as type,
               exists (select from pg_constraint c where c.conrelid = p_table and c.contype in ('p', 'u', 'x', 'f') and a.attnum = any (c.conkey))
               or exists (select from pg_index i where i.indrelid = p_table and (i.indisunique or i.indisexclusion) and a.attnum = any (i.indkey)) as bound
        from jsonb_each(p_merges) as e
        left join pg_attribute a on a.attrelid = p_table and a.attname = e.key and a.attnum > 0 and not a.attisdropped
    )
    select 'how its columns are merged is said, and its strategy is not merge', 'attach it with --strategy merge' from (select) as always
    where p_strategy <> 'merge' and p_merges <> '{}'
    union all
    select format('it has no column %I', m.name), 'see its columns with \d in psql' from m where m.attnum is null
    union all
    select format('column %I is computed: what it is computed from is merged, and it follows', m.name), 'leave it out' from m where m.generated
    union all
    select format('there is no way to merge a column that is called %L', m.kind), 'counter, set, append, max, min, latest, or function:SCHEMA.NAME'
    from m where m.kind not in ('counter', 'set', 'append', 'max', 'min', 'latest') and m.kind not like 'function:%'
    union all
    select format('column %I is in a key, or a unique or foreign key constraint: it cannot be %s', m.name, m.kind), 'leave it out'
    from m where m.bound and (m.kind in ('counter', 'set', 'append', 'max', 'min') or m.kind like 'function:%')
    union all
    select format('column %I: %s', m.name, f.problem), f.hint
    from m cross join lateral syncagent._merge_function(p_table, m.name::name, m.kind) as f
    where m.attnum is not null and not m.generated and m.kind like 'function:%' and f.problem is not null
    union all
    select format('column %I may be null: it cannot be %s', m.name, m.kind),
           format('update %1$s set %2$I = %3$s where %2$I is null; alter table %1$s alter column %2$I set not null', p_table, m.name,
                  case when m.kind = 'counter' then '0' when m.type = 'jsonb' then '''[]''' when m.type ~ '\[\]$' then '''{}''' else '''''' end)
    from m where m.attnotnull is false and m.kind in ('counter', 'set', 'append')
    union all
    select format('column %I is of type %s: it cannot be %s', m.name, m.type, m.kind),
           case m.kind when 'counter' then 'a counter is smallint, integer, bigint, or numeric with a scale, as numeric(12, 2)'
                       when 'set' then 'a set is an array, or jsonb' when 'append' then 'text, arrays and jsonb are appended to'
                       else 'its type has no order' end
    from m where m.attnum is not null and not m.generated and m.kind in ('counter', 'set', 'append', 'max', 'min') and syncagent._merge_how(p_table, m.name, m.kind) is null
$$;
comment on function syncagent._merge_obstacles is 'why columns of a table cannot be merged as is asked, and what mends it; no row if they can';

create function syncagent._told_again(p_registers jsonb, p_name text, p_node integer, p_cut bigint) returns jsonb
    language sql immutable
    as $$
    select case jsonb_typeof(r.part -> 2)
        when 'object' then case when jsonb_array_length(r.part) = 4 then jsonb_build_object('whole', r.part -> 3, 'pieces', (
            select coalesce(jsonb_object_agg(m.key, m.value -> 1), '{}') from jsonb_each(r.part -> 2) as m where (m.value ->> 0)::bigint > p_cut))
        else jsonb_build_object('-', '[]'::jsonb, '+', (
            select coalesce(jsonb_agg(m.key), '[]') from jsonb_each(r.part -> 2) as m where m.value::text::bigint > p_cut)) end
        when 'number' then case when (r.part ->> 2)::bigint >= p_cut then r.part -> 3 else '0' end
        else null end
    from (select p_registers -> p_name -> p_node::text as part) as r
$$;
comment on function syncagent._told_again is 'what a node wrote of a column after a cut that is undone, as the log says it: of a count only a stretch that began after it';

create function syncagent._merge_guard(p_table syncagent.replicated) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(string_agg(format('if tg_op = ''INSERT'' then perform syncagent._added_here(0, t.%1$I, %1$L) from changed t where t.%1$I = ''NaN''; end if;', a.attname), ' ' order by a.attnum), '')
    from jsonb_each_text(p_table.merges) as e join pg_attribute a on a.attrelid = p_table.relation and a.attname = e.key
    where p_table.strategy = 'merge' and e.value = 'counter' and syncagent._base_type(a.atttypid) = 'numeric'::regtype
$$;
comment on function syncagent._merge_guard is 'what refuses rows whose counters are not numbers: others cannot be added up';

create function syncagent._merge_tokens(p_table syncagent.replicated) returns jsonb
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_plan   jsonb;
    v_tokens jsonb;
    v_count  text := 'q.c%2$s + coalesce((v.registers -> %3$L -> me.node::text ->> 3)::numeric, 0)'
                     ' - coalesce((w.registers -> %3$L -> me.node::text ->> 3)::numeric, 0)';   -- of a row that waits, with what was added here since
    v_functions text[] := array(select e.key from jsonb_each_text(p_table.merges) as e where e.value like 'function:%' order by e.key);
    v_append text  := 'syncagent._gone_on(q.c%2$s::text, t.%1$I::text, v.registers -> %3$L, w.registers -> %3$L, me.node, %5$L)';
begin
    select coalesce(jsonb_object_agg(e.key, syncagent._merge_how(p_table.relation, e.key, e.value)), '{}') into v_plan
    from jsonb_each_text(p_table.merges) as e where e.value <> 'latest';
    select jsonb_build_object(
        -- of a row that waits, and was written on since: what the write made of it
        'shipped_from', format('left join syncagent.parked_row w on w.relation = %1$s and w.key = v.key and not v.deleted'
            ' cross join lateral (select (w.image::syncagent.row_%1$s).*) as q cross join (select s.node from syncagent.local_site s) as me', p_table.id),
        'v_columns', string_agg(case when u.key is not null then case when p_table.derived then format('v.k%s', u.key) else 'v.key' end else format(
            'case when w.key is null then t.%1$I' || case when u.how ->> 'kind' = 'counter' then ' when w.key is not null then (' || v_count || ')::%4$s'
                                                          else ' when %3$L <> all (syncagent._own_newer(v.registers, w.registers, me.node)) then q.c%2$s'
                || case when u.how ->> 'kind' = 'append' then ' when w.key is not null then ' || v_append || '::%4$s' else '' end end
            || ' else t.%1$I end', u.name, u.n, u.name, format_type(syncagent._base_type(a.atttypid), -1), u.how ->> 'of') end, ', ' order by u.n),
        'seen', format('(select k.seen from pg_temp.knotted k where v_part > 1 and k.relation = %s and k.key = s._key and k.part < v_part order by k.part desc limit 1)', p_table.id),
        'plan', quote_literal(v_plan) || '::jsonb',
        'deltas', coalesce(string_agg(format('case when row(o.%1$I)::record *<> row(t.%1$I)::record then jsonb_build_object(%2$L, '
            || case u.how ->> 'kind' when 'counter' then case when syncagent._base_type(a.atttypid) = 'numeric'::regtype then 'syncagent._added_here(o.%1$I, t.%1$I, %2$L)' else 't.%1$I::numeric - o.%1$I::numeric' end when 'set' then 'syncagent._set_delta(o.%1$I::text, t.%1$I::text, %3$L)'
                                     else 'syncagent._appended(o.%1$I::text, t.%1$I::text, %3$L)' end || ') else ''{}'' end',
            u.name, u.name, u.how ->> 'of'), ' || ' order by u.n) filter (where u.how ->> 'kind' in ('counter', 'set', 'append')), 'null::jsonb'),
        'here', format('jsonb_object(array[%s]::text[], array[%s]::text[])',
            string_agg(format('%L', u.name), ', ' order by u.n) filter (where u.key is null), string_agg(format(
                case when u.how ->> 'kind' = 'counter'
                     then 'case when j.waits then (' || replace(replace(replace(v_count, 'v.registers', 'j.mine'), 'w.registers', 'j.waiting'), 'me.node', 'v_site.node') || ')::text else t.%1$I::text end'
                     else 'case when j.waits and %3$L <> all (j.above) then q.c%2$s::text'
                         || case when u.how ->> 'kind' = 'append' then ' when j.waits then ' || replace(replace(replace(v_append, 'v.registers', 'j.mine'), 'w.registers', 'j.waiting'), 'me.node', 'v_site.node') else '' end
                         || ' else t.%1$I::text end' end, u.name, u.n, u.name, '', u.how ->> 'of'), ', ' order by u.n) filter (where u.key is null)),
        'there', format('jsonb_object(array[%s]::text[], array[%s]::text[])',
            string_agg(format('%L', u.name), ', ' order by u.n) filter (where u.key is null), string_agg(format('s.c%s::text', u.n), ', ' order by u.n) filter (where u.key is null)),
        'combined_columns', coalesce(string_agg(format(', c%1$s = case when %2$L = any (m.taken) then x.c%1$s when m.shown ? %2$L then (m.shown ->> %2$L)::%3$s'
            || case when u.how ->> 'kind' = 'append' then ' when m.waits then (m.here ->> %2$L)::%3$s' when u.how ->> 'kind' = 'counter' then ' when m.waits then (m.here ->> %2$L)::numeric::%3$s' else ' when m.waits and %2$L <> all (m.above) then m.q%1$s' end
            || ' else m.t%1$s end', u.n, u.name, format_type(syncagent._base_type(a.atttypid), -1)), '' order by u.n) filter (where u.key is null), ''),
        'at_odds', format('and o.name <> all (%L::text[])', array(select e.key from jsonb_each(v_plan) as e where e.value ->> 'kind' not in ('latest', 'function'))::text)
    ) into v_tokens
    from (select u.name, u.n, v_plan -> u.name::text as how, array_position(p_table.key_columns, u.name) as key from unnest(p_table.columns) with ordinality as u (name, n)) as u
    join pg_attribute a on a.attrelid = p_table.relation and a.attname = u.name;
    return v_tokens || jsonb_build_object(
        'written', '_merge_written', 'sides', '_part_sides', 'entries_of', 'syncagent._parts_of', 'strategy', '''merge''',
        'pinned', E'\n    set datestyle = ''ISO, MDY'' set timezone = ''UTC'' set intervalstyle = ''postgres'' set extra_float_digits = 1 set bytea_output = ''hex''',
        -- behind each op what it comes to where nothing else is known, made once for all of its rows
        'entries', format('(select e.*, o.said || case when e.op = ''U'' and e.columns is not null'
                          ' then jsonb_build_array(syncagent._with_op(''{}'', o.said, ''{}'', p_node, p_cut)) else ''[]'' end as registers'
                          ' from pg_temp.window_entry e cross join lateral (select syncagent._op(e.op, e.columns, e.deltas, syncagent._stamp(e.tx_hlc, p_tail)) offset 0) as o (said)'
                          ' where e.relation = %s offset 0)', p_table.id),
        'first', 'jsonb_array_length(f.registers) = 1 and f.registers -> 0 -> 4 <> ''{}''', 'first_registers', 'f.registers -> 0 -> 4',
        'folded_registers', 'jsonb_agg(e.registers order by e.hlc)', 'unfolded_registers', 'jsonb_agg(x.registers order by x.hlc)',
        'log_registers', 'syncagent._op(l.op, l.columns, l.deltas, syncagent._stamp(l.tx_hlc, v_site.tail))',
        'newer', 'syncagent._parts_newer(m.theirs, m.mine, coalesce(m.seen, v_frontier), v_site.node)', 'above', 'syncagent._own_newer(m.mine, m.waiting_registers, v_site.node)',
        'join_registers', format('(select v.here, r.* from (select %s as here, %s as there) as v cross join lateral syncagent._join_columns(%s, v_site.node, j.mine, j.theirs,'
            ' case when p_retry then ''{}'' else j.newer end, v.here, v.there, coalesce(j.seen, v_frontier), v_context, not v_site.copied) as r)', v_tokens ->> 'here', v_tokens ->> 'there', v_tokens ->> 'plan'),
        'seen', v_tokens ->> 'seen', 'note_part', format(   -- what comes in the parts that follow meets rows that have seen what this part had
            'if v_part > 0 then insert into pg_temp.knotted select %1$s, s._key, v_part, syncagent._greatest(coalesce(%2$s, v_frontier), v_context) from (select s.*, %3$s as _key from pg_temp.stage_%1$s s) s; end if;', p_table.id, v_tokens ->> 'seen', syncagent._stage_key(p_table)),
        'all_stable', format(' and syncagent._parts_stable(v.registers, p_stable, %s)', v_tokens ->> 'plan')
            || case when v_functions <> '{}' then format(' and syncagent._are_made(%s, v.key, v.registers, %L)', p_table.id, v_functions) else '' end,
        'forget_made', case when v_functions <> '{}' then format('delete from syncagent.merge_result m using %s s where m.relation = %s and m.key = s._key;',
            format('(select s.*, %s as _key from pg_temp.stage_%s s)', syncagent._stage_key(p_table), p_table.id), p_table.id) else '' end,
        'own_versions', replace(format('(select v.key, v.deleted {keys}, r.stamp, r.node, r.cut, r.columns, r.deltas from syncagent.version_%1$s v cross join lateral ('
            'select x.stamp, x.node, x.cut, array_agg(x.name::name order by x.name) as columns,'
            ' nullif(jsonb_strip_nulls(jsonb_object_agg(x.name, syncagent._told_again(v.registers, x.name, x.node, $2))), ''{}'') as deltas'
            ' from syncagent._part_sides(v.key, v.registers, v.deleted, v.stamp, v.node, v.cut) as x where x.name is not null group by x.stamp, x.node, x.cut, x.name = '''''
            ' union all select v.stamp, v.node, v.cut, array[null::name], null where v.deleted) as r)', p_table.id), '{keys}',
            case when p_table.derived then (select string_agg(format(', v.k%s', k), '' order by k) from generate_subscripts(p_table.key_columns, 1) as k) else '' end),
        'own_deltas', 'v.deltas');
end
$$;
comment on function syncagent._merge_tokens is 'what the templates of a table are filled with where its strategy is merge';
