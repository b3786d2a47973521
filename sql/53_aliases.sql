-- What applying can run into: two rows with one value that are to become one, the policy `merge` of a unique constraint.
--
-- Of two rows that collide (53_constraints) the one of the larger key, the *loser*, is deleted, and rows that refer to it are given
-- to the *winner*: writes of the site that sees the collision. Another site may hold rows that refer to the loser and never meet
-- both. So an *alias*, loser -> winner, goes with the cut that has the delete, and is kept as long as its tombstone. Rows that refer
-- to the loser follow it: those that are here when the delete comes, and those that come later. Of two rows that would have one
-- place with the winner then, the larger key is merged into the other, too (tests/model/aliases.py).

create function syncagent._refer_by_key(p_table regclass)
    returns table (relation integer, name name, refers name, columns name[], named name[], moves boolean, derived boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select r.id, f.conname, max(a.attname::text) filter (where p.attname = k.names[1])::name, array_agg(a.attname order by u.n), array_agg(p.attname order by u.n),
           bool_or(a.attname = any (r.key_columns)), r.derived
    from syncagent._key(p_table) as k
    join pg_constraint f on f.confrelid = p_table and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated r on r.relation = f.conrelid
    cross join lateral unnest(f.conkey, f.confkey) with ordinality as u (child, parent, n)
    join pg_attribute a on a.attrelid = f.conrelid and a.attnum = u.child
    join pg_attribute p on p.attrelid = f.confrelid and p.attnum = u.parent
    group by r.id, f.oid, f.conname, k.names
    having bool_or(p.attname = k.names[1])
    order by r.id, f.conname
$$;
comment on function syncagent._refer_by_key is 'foreign keys of attached tables that refer to a table by its key: the column that names the key, all columns and what they refer to, whether they are part of the key of the table that refers, and whether that one is derived';

-- Who is merged ---------------------------------------------------------------------------------------------

create function syncagent._bury(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_node    integer := (select s.node from syncagent.local_site s);
    v_derived boolean := (select r.derived from syncagent.replicated r where r.id = p_relation);
begin
    insert into pg_temp.yielded (relation, key, odd, op)
    select distinct on (c.loser) p_relation, c.loser, c.odd, 'D' from pg_temp.collision c where c.due order by c.loser
    on conflict (relation, key) do update set op = 'D', columns = null;
    if not v_derived then   -- nobody refers to others
        insert into syncagent.alias as a (relation, loser, winner, node)
        select distinct on (c.loser) p_relation, c.loser, c.winner, v_node from pg_temp.collision c where c.due order by c.loser, c.winner
        on conflict (relation, loser, node) do update set winner = excluded.winner, cut = null;
        insert into pg_temp.astray (relation, key) select distinct p_relation, c.loser from pg_temp.collision c where c.due;
    end if;
    update pg_temp.collision c set due = false where c.due;
end
$$;
comment on function syncagent._bury is 'losers that are gone from their table: deleted by this site, with an alias';

create function syncagent._merge_due(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    perform syncagent._change(p_tokens, 'delete from {table} t using pg_temp.collision c where c.due and t.ctid = c.tid and t.tableoid = c.leaf',
        array(select c.loser from pg_temp.collision c where c.due and c.tid is not null));
    -- of one that has just come its version is entered, and an older one that is here goes
    execute syncagent._render('delete from {table} t using pg_temp.collision c where c.due and c.tid is null and {key} = c.loser', p_tokens);
    insert into pg_temp.verdict (key, loses, conflict, kind, reason)
    select distinct c.loser, true, false, 'merged', 'merged' from pg_temp.collision c where c.due and c.tid is null;
    delete from syncagent.parked_row p using pg_temp.collision c where c.due and p.relation = p_relation and p.key = c.loser;
    perform syncagent._bury(p_relation);
end
$$;
comment on function syncagent._merge_due is 'losers of collisions, staged or here, go; their conflicts are recorded already';

-- Who follows -----------------------------------------------------------------------------------------------

create function syncagent._take_aliases(p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    insert into syncagent.alias as a (relation, loser, winner, node, cut)
    select distinct on (s.relation, s.loser) s.relation, s.loser, s.winner, p_origin, s.cut from pg_temp.stage_aliases s order by s.relation, s.loser, s.cut desc
    on conflict (relation, loser, node) do update set winner = excluded.winner, cut = excluded.cut;
    insert into pg_temp.astray (relation, key) select distinct s.relation, s.loser from pg_temp.stage_aliases s;   -- it may be gone here already
end
$$;
comment on function syncagent._take_aliases is 'keep the aliases that came with a batch: who waits for one of their losers may follow now';

create function syncagent._note_astray(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    r        record;
begin
    for r in
        select p.id, array_position(c.columns, x.refers) as n
        from syncagent.replicated p cross join lateral syncagent._refer_by_key(p.relation) as x
        join syncagent.replicated c on c.id = x.relation
        where x.relation = p_relation and exists (select from syncagent.alias a where a.relation = p.id)
    loop
        v_tokens := coalesce(v_tokens, syncagent._tokens(p_relation));
        execute syncagent._render($sql$
            insert into pg_temp.astray (relation, key)
            select distinct {parent}, a.loser from {stage} s join syncagent.alias a on a.relation = {parent} and a.loser = s.c{n}
            where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses) $sql$,
            v_tokens || jsonb_build_object('parent', r.id, 'n', r.n));
    end loop;
end
$$;
comment on function syncagent._note_astray is 'losers to which rows refer that have just come';

create function syncagent._follow_winners() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_round integer[];
    v_id    integer;
    r       record;
begin
    perform syncagent._empty('pg_temp.collision');
    while exists (select from pg_temp.astray) loop   -- who is given to another may be merged itself
        v_round := array(select distinct a.relation from pg_temp.astray a order by 1);
        foreach v_id in array v_round loop
            perform syncagent._empty('pg_temp.heir');
            execute syncagent._render($sql$
                insert into pg_temp.heir (loser, winner)
                with recursive reach (loser, winner) as (
                    select a.loser, a.winner from syncagent.alias a where a.relation = {id} and a.loser in (select s.key from pg_temp.astray s where s.relation = {id})
                    union
                    select r.loser, a.winner from reach r join syncagent.alias a on a.relation = {id} and a.loser = r.winner
                )
                select distinct on (r.loser) r.loser, r.winner from reach r join {table} t on {key} = r.winner
                where not exists (select from {table} t where {key} = r.loser)   -- it may live again
                order by r.loser, r.winner $sql$, syncagent._tokens(v_id));
            delete from pg_temp.astray a where a.relation = v_id;
            continue when not exists (select from pg_temp.heir);
            for r in
                select x.*, t.relation as parent from syncagent.replicated t cross join lateral syncagent._refer_by_key(t.relation) as x where t.id = v_id
                order by cardinality(x.columns) desc, x.relation, x.name   -- one over more columns may have all of another
            loop
                perform syncagent._follow(r.relation, r.parent, r.name, r.refers, r.columns, r.named, r.moves);
            end loop;
        end loop;
    end loop;
end
$$;
comment on function syncagent._follow_winners is 'give rows that refer to somebody who was merged away to the one that is left: the lowest key that is here of those that the aliases lead to';

create function syncagent._follow(p_relation integer, p_parent regclass, p_name name, p_refers name, p_columns name[], p_named name[], p_moves boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table  syncagent.replicated;
    v_tokens jsonb := syncagent._tokens(p_relation);
    v_key    uuid;
begin
    select * into strict v_table from syncagent.replicated r where r.id = p_relation;
    v_tokens := v_tokens || jsonb_build_object(
        'odd_value', coalesce(nullif(v_tokens ->> 'odd_value', ''), ', null::text as odd'),
        'refers', quote_ident(p_refers), 'refers_literal', quote_literal(p_refers), 'name', quote_literal(p_name) || '::name',
        'parent', (select format('%I.%I w on w.%I = f.winner', n.nspname, c.relname, k.names[1])
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace cross join lateral syncagent._key(c.oid) as k where c.oid = p_parent),
        'set', (select string_agg(format('%I = w.%I', p_columns[n], p_named[n]), ', ') from generate_subscripts(p_columns, 1) as n),
        'given', (select format('jsonb_build_object(%s)', string_agg(format('%L, w.%I', p_columns[n], p_named[n]), ', ')) from generate_subscripts(p_columns, 1) as n));
    v_tokens := v_tokens || jsonb_build_object('followed', (
        select string_agg(case when u.c = any (p_columns) then format('w.%I as %I', p_named[array_position(p_columns, u.c)], u.c) else format('t.%I', u.c) end, ', ' order by u.n)
        from unnest(v_table.columns) with ordinality as u (c, n)));
    perform syncagent._empty('pg_temp.follower');
    perform syncagent._hold(v_tokens, '{table} t join pg_temp.heir h on t.{refers} = h.loser', case when p_moves then 'update' else 'no key update' end);
    execute syncagent._render($sql$
        insert into pg_temp.follower (key, odd, key_text, image, tid, leaf, loser, winner)
        select f.key, f.odd, f.key_text, f.image, f.tid, f.leaf, f.loser, f.winner
        from (select {key} as key, {t_key_text} as key_text, to_jsonb(t.*) as image, t.ctid as tid, t.tableoid as leaf, h.loser, h.winner {odd_value}
              from {table} t join pg_temp.heir h on t.{refers} = h.loser) as f $sql$, v_tokens);
    if not exists (select from pg_temp.follower) then
        return;
    elsif p_moves then
        perform syncagent._follow_with_key(p_relation, v_tokens);
        return;
    end if;
    perform syncagent._settle_followers(p_relation, v_tokens);
    if not syncagent._give(v_tokens, array(select f.key from pg_temp.follower f)) then
        for v_key in select f.key from pg_temp.follower f order by f.key loop   -- a constraint of this site refuses one: it stays as it is, and the conflict says so
            if not syncagent._give(v_tokens, array[v_key]) then
                perform syncagent._report_stray(v_tokens, v_key);
                delete from pg_temp.follower f where f.key = v_key;
            end if;
        end loop;
    end if;
    execute syncagent._render($sql$
        update syncagent.conflict_record c set followed = coalesce(c.followed, '[]') || n.rows
        from (select p.schema_name, p.table_name, f.loser, f.winner, jsonb_agg(jsonb_build_object('schema', {schema_literal}, 'table', {table_literal}, 'key', f.key_text,
                     'before', (select jsonb_object_agg(k, f.image -> k) from unnest($1) as k), 'after', {given})) as rows
              from pg_temp.follower f join {parent} cross join syncagent.replicated p where p.relation = $2
              group by 1, 2, 3, 4) as n
        where c.schema_name = n.schema_name and c.table_name = n.table_name and c.key = n.loser and c.other_key = n.winner
          and c.kind = 'unique' and c.strategy = 'merge' and (syncagent._settlement(c.id)).what is distinct from 'resolved' $sql$, v_tokens) using p_columns::text[], p_parent;
    insert into pg_temp.yielded as y (relation, key, odd, columns)
    select p_relation, f.key, f.odd, case when v_table.strategy <> 'lww' then p_columns end from pg_temp.follower f
    on conflict (relation, key) do update set columns = case when y.columns is not null then y.columns || excluded.columns end;   -- else it is all new
end
$$;
comment on function syncagent._follow is 'of one foreign key: rows that refer to losers refer to the winners';

create function syncagent._give(p_tokens jsonb, p_keys uuid[]) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_state text;
begin
    perform syncagent._change(p_tokens, 'update {table} t set {set} from pg_temp.follower f join {parent} where t.ctid = f.tid and t.tableoid = f.leaf and f.key = any ($1)', p_keys);
    perform syncagent._check_deferrable((p_tokens ->> 'id')::integer, p_keys);
    return true;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    return false;
end
$$;
comment on function syncagent._give is 'let these rows refer to the winner; whether no constraint refuses one';

create function syncagent._report_stray(p_tokens jsonb, p_key uuid) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name,
            winning_stamp, losing_stamp, winning_node, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, f.key, f.winner, 'foreign key')), {schema_literal}, {table_literal}, f.key, f.key_text,
               'foreign key', 'merge', {name}, syncagent._stamp(syncagent._tick(), s.tail), syncagent._implicit(f.key), s.node, f.image
        from pg_temp.follower f cross join syncagent.local_site s where f.key = $1
        on conflict (id) do nothing $sql$, p_tokens) using p_key;
end
$$;
comment on function syncagent._report_stray is 'a conflict for a row that refers to somebody who is gone, and that cannot be written';

create function syncagent._settle_followers(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_count  bigint;
    r        record;
begin
    for r in   -- nothing refers to a row whose key is not one uuid: it can go, too, unless something else was chosen
        select u.*, k.does from syncagent._rules(p_relation) as u join syncagent.replicated t on t.id = p_relation
        cross join lateral (select case when u.kind = 'unique' and coalesce(t.policies ->> u.name::text, 'merge') = 'merge' then 'merge' else u.policy end as does) as k
        where k.does in ('keep-both', 'merge') order by u.name
    loop
        v_tokens := p_tokens || jsonb_build_object('rule', quote_literal(r.name) || '::name', 'kind', quote_literal(r.kind), 'strategy', quote_literal(r.does),
            'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal) || syncagent._yield_tokens(p_relation, r.does, r.column_name, r.yields);
        execute syncagent._render($sql$
            with came as materialized (
                select {expressions}, t."$key" as key, t."$odd" as odd, t."$text" as key_text, t."$image" as image, t."$tid" as tid, t."$leaf" as leaf
                from (select {followed}, f.key as "$key", f.odd as "$odd", f.key_text as "$text", f.image as "$image", f.tid as "$tid", f.leaf as "$leaf"
                      from pg_temp.follower f join {table} t on t.ctid = f.tid and t.tableoid = f.leaf join {parent}) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text {odd_value}, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as loser, x.key_text, x.odd, x.image, x.tid, x.leaf, y.key as winner, y.key_text as winner_text, y.image as winning_image
                from came x join here y on {equal} where x.key > y.key and y.key not in (select f.key from pg_temp.follower f)
                union all
                select y.key, y.key_text, y.odd, y.image, y.tid, y.leaf, x.key, x.key_text, x.image
                from came x join here y on {equal} where x.key < y.key and y.key not in (select f.key from pg_temp.follower f)
                union all
                select x.key, x.key_text, x.odd, x.image, x.tid, x.leaf, y.key, y.key_text, y.image
                from came x join came y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, odd, losing_image, tid, leaf, winner, winner_text, winning_image, due)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.odd, p.image, p.tid, p.leaf, p.winner, p.winner_text, p.winning_image, true
            from pair p order by p.loser, p.winner $sql$, v_tokens);
        get diagnostics v_count = row_count;
        continue when v_count = 0;
        if r.does = 'keep-both' then
            perform syncagent._yield_place(p_relation, v_tokens, r.column_name);
            continue;
        end if;
        perform syncagent._record_collisions(v_tokens, 0);
        delete from pg_temp.follower f using pg_temp.collision c where c.due and f.key = c.loser;
        perform syncagent._merge_due(p_relation, v_tokens);
    end loop;
end
$$;
comment on function syncagent._settle_followers is 'of rows that would have one place with the winner only the lowest key is left, or the others yield it, as is chosen for their constraint; where nothing can be done, what comes to one that is taken is refused';

create function syncagent._yield_place(p_relation integer, p_tokens jsonb, p_column name) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_lww   boolean := (select r.strategy = 'lww' from syncagent.replicated r where r.id = p_relation);
    v_state text;
begin
    perform syncagent._record_collisions(p_tokens, 0);
    perform syncagent._change(p_tokens, $sql$
        with yielding as (
            update {table} t set {column} = {yielded}
            from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
            where c.due and c.loser = any ($1) and t.ctid = c.tid and t.tableoid = c.leaf
            returning c.loser, t.ctid as tid, t.tableoid as leaf
        ), moved as (
            update pg_temp.follower f set tid = y.tid, leaf = y.leaf from yielding y where f.key = y.loser
        )
        select from yielding $sql$, array(select c.loser from pg_temp.collision c where c.due));
    insert into pg_temp.yielded as y (relation, key, odd, columns)
    select p_relation, c.loser, c.odd, case when not v_lww then array[p_column] end from pg_temp.collision c where c.due
    on conflict (relation, key) do update set columns = case when y.columns is not null then y.columns || excluded.columns end;
    update pg_temp.collision c set due = false where c.due;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    delete from pg_temp.collision c where c.due;   -- one may not be without its value here: who comes to its place is refused
end
$$;
comment on function syncagent._yield_place is 'rows that follow, or are with the winner already, yield the value that gives them one place';

create function syncagent._follow_with_key(p_relation integer, p_tokens jsonb) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_key    uuid;
begin
    select p_tokens || jsonb_build_object('primary', quote_literal(c.conname))
    into strict v_tokens
    from syncagent.replicated r join pg_constraint c on c.conrelid = r.relation and c.contype = 'p' where r.id = p_relation;
    execute syncagent._render($sql$
        update pg_temp.follower g set new_key = n.key, new_text = n.key_text
        from (select t."$key", {key} as key, {t_key_text} as key_text
              from (select {followed}, f.key as "$key" from pg_temp.follower f join {table} t on t.ctid = f.tid and t.tableoid = f.leaf join {parent}) as t) as n
        where g.key = n."$key" $sql$, v_tokens);
    if not syncagent._place(p_relation, v_tokens, array(select distinct f.new_key from pg_temp.follower f)) then
        for v_key in select distinct f.new_key from pg_temp.follower f order by 1 loop   -- those of one key stay as they are, and conflicts say so
            if not syncagent._place(p_relation, v_tokens, array[v_key]) then
                perform syncagent._report_stray(v_tokens, f.key) from pg_temp.follower f where f.new_key = v_key;
            end if;
        end loop;
    end if;
end
$$;
comment on function syncagent._follow_with_key is 'rows whose key names the loser are deleted, and written again under a key that names the winner, unless there is one';

create function syncagent._place(p_relation integer, p_tokens jsonb, p_keys uuid[]) returns boolean
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_state text;
begin
    -- Where there is a row of that name, that one stays.
    execute syncagent._render($sql$
        with gone as materialized (
            delete from {table} t using pg_temp.follower f where f.new_key = any ($1) and t.ctid = f.tid and t.tableoid = f.leaf
            returning {t_columns}, f.key as "$key", f.new_key as "$new", f.winner as "$winner"
        ), placed as (
            insert into {table} as t ({columns}) overriding system value
            select {t_columns} from (
                select distinct on (t."$new") {followed} from gone t cross join lateral (select t."$winner" as winner) as f join {parent}
                order by t."$new", t."$key") as t
            on conflict ({key_names}) do nothing
            returning {key} as key {odd_value}
        ), logged as (
            insert into pg_temp.yielded as y (relation, key, odd, op)
            select {id}, p.key, p.odd, 'U' from placed p
            on conflict (relation, key) do update set op = 'U', columns = null
            returning key
        )
        update pg_temp.follower f set placed = f.key = (
            select min(o.key::text)::uuid from pg_temp.follower o where o.new_key = f.new_key)
        from gone g where g."$key" = f.key and f.new_key in (select l.key from logged l) $sql$, p_tokens) using p_keys;
    execute syncagent._render($sql$
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name, other_key, other_key_text,
            winning_stamp, losing_stamp, winning_node, winning_image, losing_image)
        select syncagent._name_uuid(format('%s %s %s %s', {title}, f.new_key, f.key, {primary})), {schema_literal}, {table_literal}, f.key, f.key_text,
               'unique', 'merge', {primary}::name, f.new_key, f.new_text,
               syncagent._stamp(syncagent._tick(), s.tail), coalesce(v.stamp, syncagent._implicit(f.key)), s.node, to_jsonb(t.*), f.image
        from pg_temp.follower f cross join syncagent.local_site s
        left join syncagent.version_{id} v on v.key = f.key
        left join {table} t on t.{refers} = f.winner and {key} = f.new_key
        where not f.placed and f.new_key = any ($1)
        on conflict (id) do nothing $sql$, p_tokens) using p_keys;
    insert into pg_temp.yielded as y (relation, key, odd, op)
    select p_relation, f.key, f.odd, 'D' from pg_temp.follower f where f.new_key = any (p_keys)
    on conflict (relation, key) do update set op = 'D', columns = null;
    return true;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if not syncagent._may_park(v_state) then
        raise;
    end if;
    return false;
end
$$;
comment on function syncagent._place is 'let these rows go, and write them under these keys; whether no constraint refuses one';

create function syncagent._merge_restored(p_relation integer, p_keys uuid[]) returns uuid[]
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb;
    v_merged uuid[] := '{}';
    v_count  bigint;
    r        record;
begin
    for r in select * from syncagent._rules(p_relation) as u where u.policy = 'merge' order by u.name loop
        v_tokens := coalesce(v_tokens, syncagent._bereft_tokens(p_relation)) || jsonb_build_object('rule', quote_literal(r.name) || '::name',
            'kind', quote_literal(r.kind), 'strategy', quote_literal('merge'), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
            'column_literal', 'null::text', 'yielded_image', 'null::jsonb');
        execute syncagent._render($sql$
            with back as materialized (
                select {expressions}, t."$key" as key, {t_key_text} as key_text, t."$image" as image
                from (select t.*, x.key as "$key", to_jsonb(t.*) as "$image" from pg_temp.bereft x cross join lateral {row} as t
                      where x.relation = {id} and x.key = any ($1)) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as loser, x.key_text, x.image, null::tid as tid, null::oid as leaf, y.key as winner, y.key_text as winner_text, y.image as winning_image
                from back x join here y on {equal} where x.key > y.key
                union all
                select y.key, y.key_text, y.image, y.tid, y.leaf, x.key, x.key_text, x.image
                from back x join here y on {equal} where x.key < y.key
                union all
                select x.key, x.key_text, x.image, null, null, y.key, y.key_text, y.image
                from back x join back y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, losing_image, tid, leaf, winner, winner_text, winning_image, due)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.image, p.tid, p.leaf, p.winner, p.winner_text, p.winning_image, true
            from pair p order by p.loser, p.winner $sql$, v_tokens) using p_keys;
        get diagnostics v_count = row_count;
        continue when v_count = 0;
        perform syncagent._record_collisions(v_tokens, 0);
        v_merged := v_merged || array(select c.loser from pg_temp.collision c where c.due and c.loser = any (p_keys));
        perform syncagent._merge_due(p_relation, v_tokens);
    end loop;
    return v_merged;
end
$$;
comment on function syncagent._merge_restored is 'of rows that are to come back those that are merged into one that is here; those that are here, and are to be merged into one that comes back, go';
