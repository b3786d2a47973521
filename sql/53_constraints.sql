-- What applying can run into: rows that break a constraint here.
--
-- A constraint holds at every site, and no site can refuse what another has committed. Two rows with one value of a unique
-- or exclusion constraint are a *collision*: of the two the row of the larger key yields, everywhere, whichever came first.
-- Its value is taken from it, which is a write of the site that sees the collision: logged, cut and shipped. Others may do
-- the same at once; what they write is equal. Only what remains once all of a batch, or knot, is there is a collision:
-- values pass between rows inside of it (tests/model/unique.py shows what each of these rules prevents).
--
-- A row that breaks anything else is *parked*: it waits here, alone, and is tried again after every batch. So does one that collides
-- while the row that would yield refers to one that is not here: written by this site it could win against a delete of it, and
-- nobody need have the other one any more (tests/model/references.py --unique).

create function syncagent._room(p_type oid, p_modifier integer) returns integer
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    with recursive up (type, modifier) as (
        select p_type, p_modifier
        union all
        select t.typbasetype, t.typtypmod from up join pg_type t on t.oid = up.type where t.typbasetype <> 0
    ) select coalesce(min(modifier - 4) filter (where modifier >= 4), 10485760) from up
$$;
comment on function syncagent._room is 'how many characters a column of text holds';

create function syncagent._marked(p_value text, p_room integer, p_key uuid) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select left(coalesce(p_value, ''), p_room - 13) || '~' || left(md5(p_key::text), 12) $$;
comment on function syncagent._marked is 'what a text becomes in a row that yields it: what there is room for, and a mark that the key alone decides';

create function syncagent._merge_problem(p_table regclass, p_index regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case
        when not i.indisunique or i.indisexclusion then 'it is no unique constraint'
        when not k.uuid then 'the key of its table is not one uuid column'
        else (
            select case
                when k.names[1] <> all (x.named) and not x.within
                    then format('%s of %s refers to %s, of which the other row has other values', x.name, x.child, array_to_string(x.named, ', '))
                when x.moves and exists (select from pg_constraint g join syncagent.replicated o on o.relation = g.conrelid where g.confrelid = x.child and g.contype = 'f')
                    then format('%s is part of the key of %s, to which other rows refer', x.name, x.child) end
            from (
                select f.conname as name, r.relation as child, array_agg(p.attname order by p.attname) as named,
                       bool_and(p.attnum = any (i.indkey::smallint[])) as within, bool_or(a.attname = any (r.key_columns)) as moves
                from pg_constraint f join syncagent.replicated r on r.relation = f.conrelid
                cross join lateral unnest(f.conkey, f.confkey) as u (child, parent)
                join pg_attribute a on a.attrelid = f.conrelid and a.attnum = u.child
                join pg_attribute p on p.attrelid = f.confrelid and p.attnum = u.parent
                where f.confrelid = p_table and f.contype = 'f' and f.conparentid = 0
                group by f.oid, f.conname, r.relation
            ) as x
            where k.names[1] <> all (x.named) and not x.within
               or x.moves and exists (select from pg_constraint g join syncagent.replicated o on o.relation = g.conrelid where g.confrelid = x.child and g.contype = 'f')
            order by x.name limit 1) end
    from pg_index i cross join lateral syncagent._key(p_table) as k where i.indexrelid = p_index
$$;
comment on function syncagent._merge_problem is 'why two rows that collide cannot become one, or null';

create function syncagent._over_merged(p_table regclass, p_index regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select exists (
        select from pg_index i join pg_constraint f on f.conrelid = i.indrelid and f.contype = 'f' and f.conkey && i.indkey::smallint[]
        join syncagent.replicated p on p.relation = f.confrelid
        where i.indexrelid = p_index and i.indrelid = p_table
          and exists (select from jsonb_each_text(p.policies) as c where c.value = 'merge'))
$$;
comment on function syncagent._over_merged is 'whether a unique constraint has a column that refers to rows that are merged: what it keeps apart can become one then';

create function syncagent._bereaved(p_relation integer) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select coalesce(string_agg(format('(%s and not exists (select from %I.%I p where %s))', k.given, n.nspname, c.relname, k.mine)
        || case when f.confrelid = f.conrelid then format(' and (%s) is not true', k.itself) else '' end
        || case when x.refers is null then '' else format(
            ' and not exists (with recursive reach (winner) as ('
            'select a.winner from syncagent.alias a where a.relation = %1$s and a.loser = t.%2$I union '
            'select a.winner from reach r join syncagent.alias a on a.relation = %1$s and a.loser = r.winner) '
            'select from reach r join %3$I.%4$I p on p.%5$I = r.winner)', q.id, x.refers, n.nspname, c.relname, q.key_columns[1]) end, ' or '), 'false')
    from syncagent.replicated r
    join pg_constraint f on f.conrelid = r.relation and f.contype = 'f' and f.conparentid = 0
    join syncagent.replicated q on q.relation = f.confrelid
    join pg_class c on c.oid = f.confrelid join pg_namespace n on n.oid = c.relnamespace
    left join lateral (
        select m.refers from syncagent._refer_by_key(q.relation) as m
        where m.relation = r.id and m.name = f.conname and exists (select from syncagent.alias a where a.relation = q.id)) as x on true
    cross join lateral (
        select string_agg(format('t.%I is not null', a.attname), ' and ' order by k) as given,
               string_agg(format('p.%I operator(%I.%s) t.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as mine,
               string_agg(format('t.%I operator(%I.%s) t.%I', p.attname, s.nspname, o.oprname, a.attname), ' and ' order by k) as itself
        from generate_series(1, cardinality(f.conkey)) k
        join pg_attribute p on p.attrelid = f.confrelid and p.attnum = f.confkey[k]
        join pg_attribute a on a.attrelid = f.conrelid and a.attnum = f.conkey[k]
        join pg_operator o on o.oid = f.conpfeqop[k] join pg_namespace s on s.oid = o.oprnamespace
    ) as k
    where r.id = p_relation and coalesce(r.policies ->> f.conname::text, 'restore-parent') <> 'report'   -- else nobody brings it back
$$;
comment on function syncagent._bereaved is 'whether a row t of an attached table refers to one that is not here, nor whom it was merged into: what this site writes of it could win against a delete, and nobody else need have that row';

create function syncagent._rules(p_relation integer)
    returns table (name name, kind text, policy text, is_deferrable boolean, predicate text, expressions text, equal text,
                   column_name name, yields text)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select c.relname, case when i.indisexclusion then 'exclusion' else 'unique' end,
           case when coalesce(t.policies ->> c.relname::text, case when m.over then 'merge' end) = 'merge' and m.problem is null then 'merge'
                when y.attname is null or t.policies ->> c.relname::text = 'merge' then 'report' else coalesce(t.policies ->> c.relname::text, 'keep-both') end,
           exists (select from pg_constraint d where d.conindid = i.indexrelid and d.condeferrable),
           coalesce(' where ' || pg_get_expr(i.indpred, i.indrelid, true), ''),
           (select string_agg(format(case when l.oid is null then '%s as e%s' else '(%s) collate %3$I.%4$I as e%2$s' end,
                                     pg_get_indexdef(i.indexrelid, k, true), k, s.nspname, l.collname), ', ' order by k)
            from generate_series(1, i.indnkeyatts) k
            left join pg_collation l on l.oid = nullif(i.indcollation[k - 1], 'pg_catalog.default'::regcollation) left join pg_namespace s on s.oid = l.collnamespace),
           (select string_agg(format(case when w.nulls_too then '(x.e%1$s operator(%2$I.%3$s) y.e%1$s or x.e%1$s is null and y.e%1$s is null)'
                                          else 'x.e%1$s operator(%2$I.%3$s) y.e%1$s' end, k, n.nspname, o.oprname), ' and ' order by k)
            from generate_series(1, i.indnkeyatts) k
            join pg_operator o on o.oid = coalesce(x.conexclop[k], (
                select a.amopopr from pg_opclass b join pg_amop a on a.amopfamily = b.opcfamily and a.amopstrategy = 3
                    and a.amoplefttype = b.opcintype and a.amoprighttype = b.opcintype
                where b.oid = i.indclass[k - 1]))
            join pg_namespace n on n.oid = o.oprnamespace),
           y.attname, y.yields
    from syncagent.replicated t join pg_index i on i.indrelid = t.relation join pg_class c on c.oid = i.indexrelid
    cross join lateral (select coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) as nulls_too) as w   -- from 15 on
    cross join lateral (select syncagent._merge_problem(i.indrelid::regclass, i.indexrelid::regclass) as problem, syncagent._over_merged(i.indrelid::regclass, i.indexrelid::regclass) as over) as m
    left join pg_constraint x on x.conindid = i.indexrelid and x.conexclop is not null
    left join lateral (
        select a.attname, case when v.nullable then 'null' else 'suffix' end as yields
        from (
            select u.n, u.o from unnest(i.indkey::smallint[]) with ordinality as u (n, o) where u.n > 0 and u.o <= i.indnkeyatts
            union all
            select d.refobjsubid, 0 from pg_depend d   -- inside an expression
            where i.indexprs is not null and i.indpred is null and d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
              and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid and d.refobjsubid > 0
        ) as k
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.n
        join pg_type b on b.oid = a.atttypid
        cross join lateral (
            select not (a.attnotnull or b.typnotnull or w.nulls_too) as nullable,
                   not i.indisexclusion and syncagent._base_type(a.atttypid) in ('text'::regtype, 'varchar'::regtype)
                   and syncagent._room(a.atttypid, a.atttypmod) >= 24 as spelled
        ) as v
        where (v.nullable or v.spelled) and a.attname <> all (t.key_columns) and a.attgenerated = '' and a.attidentity = ''
          and not exists (
            select from pg_constraint f
            where f.contype = 'f' and (f.conrelid = i.indrelid and a.attnum = any (f.conkey) or f.confrelid = i.indrelid and a.attnum = any (f.confkey)))
        order by k.o desc, a.attnum desc limit 1
    ) as y on true
    where t.id = p_relation and (i.indisunique or i.indisexclusion) and not i.indisprimary
      and i.indislive and i.indisready and (i.indisvalid or c.relkind <> 'I')   -- of a partitioned table: on all partitions
      -- what does not travel (a generated column, or one that was added since) is not there to be compared before it is written
      and not exists (
        select from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid
          and a.attname <> all (t.columns))
      and not exists (
        select from unnest(i.indkey::smallint[]) as u (n) join pg_attribute a on a.attrelid = i.indrelid and a.attnum = u.n
        where a.attname <> all (t.columns))
$$;
comment on function syncagent._rules is 'unique and exclusion constraints of an attached table that can be compared before rows are written: what they compare, what is done about a collision, and which column of the row that yields becomes null or gets a suffix; one of a foreign key, or of the key, is left alone';

create function syncagent._record_collisions(p_tokens jsonb, p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
    v_me   syncagent.local_site;
begin
    select * into strict v_me from syncagent.local_site;
    execute syncagent._render($sql$
        with unfolded as materialized (
            select k.key, syncagent._stamp(max(x.tx_hlc), $1) as stamp
            from (select l.relation, l.keys, max(l.hlc) over (partition by l.xid) as tx_hlc
                  from syncagent.log l where l.xid >= $3 or l.xid = any ($4)) as x cross join lateral unnest(x.keys) as k (key)
            where x.relation = {id} group by k.key
        ), known as (
            select k.key, coalesce(greatest(v.stamp, u.stamp), syncagent._implicit(k.key)) as stamp,
                   case when u.stamp is not null and (v.stamp is null or u.stamp >= v.stamp) then $2
                        else coalesce(v.node, (select e.node from syncagent.cut_keys e
                                               where e.relation = {id} and e.implicit and k.key = any (e.keys) limit 1)) end as node
            from (select c.loser as key from pg_temp.collision c where c.due and c.losing_stamp is null
                  union select c.winner from pg_temp.collision c where c.due and c.winning_stamp is null) as k
            left join syncagent.version_{id} v on v.key = k.key left join unfolded u on u.key = k.key
        )
        insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, constraint_name, other_key, other_key_text,
            winning_stamp, losing_stamp, winning_node, losing_node, winning_image, losing_image, yielded)
        select syncagent._name_uuid(format('%s %s %s %s %s', {title}, c.rule, c.winner, c.loser, coalesce(c.losing_stamp, l.stamp))),
               {schema_literal}, {table_literal}, c.loser, c.key_text, {kind}, {strategy}, c.rule, c.winner, c.winner_text,
               coalesce(c.winning_stamp, w.stamp), coalesce(c.losing_stamp, l.stamp),
               case when c.winning_stamp is null then w.node else $5 end, case when c.losing_stamp is null then l.node else $5 end,
               c.winning_image, c.losing_image, {yielded_image}
        from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
        left join known l on l.key = c.loser left join known w on w.key = c.winner
        where c.due
        on conflict (id) do nothing
        $sql$, p_tokens) using v_me.tail, v_me.node, v_last.xmax, v_last.xip, p_origin;
end
$$;
comment on function syncagent._record_collisions is 'a conflict for each collision that is due, with both rows';

create function syncagent._yield_tokens(p_relation integer, p_policy text, p_column name, p_yields text) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select case when p_policy = 'keep-both' then (
        select k.tokens || jsonb_build_object('yielded_image', syncagent._render('jsonb_build_object({column_literal}, {yielded})', k.tokens))
        from syncagent.replicated r join pg_attribute a on a.attrelid = r.relation and a.attname = p_column
        cross join lateral (select jsonb_build_object('column', quote_ident(p_column), 'column_literal', quote_literal(p_column) || '::text',
            'stage_column', 'c' || array_position(r.columns, p_column),
            'yielded', case p_yields when 'null' then 'null' else format('syncagent._marked(f.value::text, %s, c.loser)', syncagent._room(a.atttypid, a.atttypmod)) end) as tokens) as k
        where r.id = p_relation)
    else '{"column_literal": "null::text", "yielded_image": "null::jsonb"}' end
$$;
comment on function syncagent._yield_tokens is 'how the row of a collision that yields does so; of one that is merged there is nothing to say';

create function syncagent._put_off(p_relation integer, p_tokens jsonb, p_merged boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_free uuid[];
    r      record;
begin
    execute syncagent._render($sql$
        select array(select k.key from (
            select {key} as key from {table} t where {key} in (select c.loser from pg_temp.collision c where c.due) for update of t skip locked) as k) $sql$, p_tokens)
        into v_free;
    update pg_temp.collision c set held = c.winner where c.due and c.tid is not null and c.loser <> all (v_free);
    for r in select x.relation, x.refers from syncagent.replicated t cross join lateral syncagent._refer_by_key(t.relation) as x where t.id = p_relation and p_merged loop
        execute syncagent._render($sql$
            with free as materialized (
                select t.tableoid as leaf, t.ctid as tid from {table} t where t.{refers} in (select c.loser from pg_temp.collision c where c.due) for update of t skip locked
            )
            update pg_temp.collision c set held = case when c.tid is null then c.loser else c.winner end
            from {table} t where c.due and t.{refers} = c.loser and (t.tableoid, t.ctid) not in (select f.leaf, f.tid from free f) $sql$,
            syncagent._tokens(r.relation) || jsonb_build_object('refers', quote_ident(r.refers)));
    end loop;
end
$$;
comment on function syncagent._put_off is 'of collisions that are due hold those back of which the row that yields, or one that would follow, is written by others';

create function syncagent._hold_back(p_state text, p_reason text) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_left bigint;
begin
    insert into pg_temp.verdict (key, loses, conflict, kind, sqlstate, reason)
    select distinct c.held, true, false, 'parked', p_state, p_reason
    from pg_temp.collision c where c.held is not null;
    delete from pg_temp.collision c using pg_temp.collision h where c.due and h.held in (c.held, c.loser, c.winner);
    select count(*) into v_left from pg_temp.collision c where c.due;
    return v_left;
end
$$;
comment on function syncagent._hold_back is 'rows that came, and collide with one that may not be written, or are it, are to wait, parked; how many collisions are left';

create function syncagent._settle_collisions(p_relation integer, p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_tokens  jsonb;
    v_settled bigint := 0;
    v_count   bigint;
    r         record;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    v_tokens := syncagent._tokens(p_relation);
    v_tokens := v_tokens || (   -- most tables refer to nothing
        select jsonb_build_object('bereaved', b.bereaved, 'losing_row', case when b.bereaved = 'false' then ''
            else format('cross join lateral jsonb_populate_record(null::%s, p.losing_image) as t', v_tokens ->> 'table') end)
        from (select syncagent._bereaved(p_relation) as bereaved) as b);
    if v_tokens ->> 'odd_value' = '' then
        v_tokens := v_tokens || jsonb_build_object('odd_value', ', null::text as odd');
    end if;
    for r in select * from syncagent._rules(p_relation) as u where u.policy in ('keep-both', 'merge') order by u.name loop
        v_tokens := v_tokens || jsonb_build_object('rule', quote_literal(r.name) || '::name', 'kind', quote_literal(r.kind),
            'strategy', quote_literal(r.policy), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal)
            || syncagent._yield_tokens(p_relation, r.policy, r.column_name, r.yields);

        -- Which rows collide: one that came with one that is here and stays as it is, or with another that came.
        execute syncagent._render($sql$
            with incoming as materialized (
                select {expressions}, t."$key" as key, t."$stamp" as stamp, t."$image" as image, {t_key_text} as key_text {odd_value}
                from (select {stage_as_table}, s._key as "$key", coalesce(s._stamp, syncagent._implicit(s._key)) as "$stamp",
                             (select to_jsonb(x.*) from (select {stage_as_table}) as x) as "$image"
                      from {stage} s
                      where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)) as t {predicate}
            ), here as not materialized (
                select {expressions}, t."$key" as key, t."$image" as image, {t_key_text} as key_text {odd_value}, t."$tid" as tid, t."$leaf" as leaf
                from (select t.*, {key} as "$key", to_jsonb(t.*) as "$image", t.ctid as "$tid", t.tableoid as "$leaf" from {table} t) as t {predicate}
            ), pair as (
                select x.key as came, x.key as loser, x.key_text, x.odd, x.stamp as losing_stamp, x.image as losing_image, null::tid as tid, null::oid as leaf,
                       y.key as winner, y.key_text as winner_text, null::uuid as winning_stamp, y.image as winning_image
                from incoming x join here y on {equal} where x.key > y.key and y.key not in (select i.key from {elsewhere} i)
                union all
                select x.key, y.key, y.key_text, y.odd, null, y.image, y.tid, y.leaf, x.key, x.key_text, x.stamp, x.image
                from incoming x join here y on {equal} where x.key < y.key and y.key not in (select i.key from {elsewhere} i)
                union all
                select x.key, x.key, x.key_text, x.odd, x.stamp, x.image, null, null, y.key, y.key_text, y.stamp, y.image
                from incoming x join incoming y on {equal} where x.key > y.key
            )
            insert into pg_temp.collision (rule, loser, key_text, odd, losing_stamp, losing_image, tid, leaf, winner, winner_text, winning_stamp, winning_image, due, held)
            select distinct on (p.loser) {rule}, p.loser, p.key_text, p.odd, p.losing_stamp, p.losing_image, p.tid, p.leaf,
                   p.winner, p.winner_text, p.winning_stamp, p.winning_image, true, case when {bereaved} then p.came end
            from pair p {losing_row} where not exists (select from pg_temp.collision c where c.rule = {rule} and c.loser = p.loser)
            order by p.loser, p.winner
            $sql$, v_tokens || jsonb_build_object('elsewhere', syncagent._render($sql$(
                -- rows that will not be what they are here: the batch has, or a parked version is, something newer
                select s._key as key from {stage} s where s._deleted is true
                    or not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)
                union all select p.key from syncagent.parked_row p where p.relation = {id})$sql$, v_tokens)));
        get diagnostics v_count = row_count;
        v_settled := v_settled + v_count;
        if exists (select from pg_temp.collision c where c.held is not null) then
            v_count := syncagent._hold_back('23503', format('another row has the value of %s, and the one that would yield refers to a row that is not here', r.name));
        end if;
        if v_count > 0 and current_setting('syncagent.put_off', true) = 'on' then
            perform syncagent._put_off(p_relation, v_tokens, r.policy = 'merge');
            v_count := syncagent._hold_back('55P03', format('another row has the value of %s, and others are writing that one, or one that refers to it', r.name));
        end if;
        continue when v_count = 0;

        perform syncagent._record_collisions(v_tokens, p_origin);
        if r.policy = 'merge' then
            perform syncagent._merge_due(p_relation, v_tokens);
            continue;
        end if;
        execute syncagent._render($sql$
            update pg_temp.stage_{id} s set {stage_column} = {yielded}
            from pg_temp.collision c
            join (select s.ctid as tid, {stage_key} as key, s.{stage_column} as value from pg_temp.stage_{id} s) as f on f.key = c.loser
            where c.due and c.tid is null and s.ctid = f.tid
            $sql$, v_tokens || jsonb_build_object('stage_key', syncagent._stage_key(v_table)));
        perform syncagent._change(v_tokens, $sql$
            update {table} t set {column} = {yielded}
            from pg_temp.collision c cross join lateral (select c.losing_image ->> {column_literal} as value) as f
            where c.due and t.ctid = c.tid and t.tableoid = c.leaf
            $sql$, array(select c.loser from pg_temp.collision c where c.due and c.tid is not null));
        insert into pg_temp.yielded as y (relation, key, odd, columns)
        select distinct on (c.loser) p_relation, c.loser, c.odd, case when v_table.strategy <> 'lww' then array[r.column_name] end from pg_temp.collision c where c.due order by c.loser
        on conflict (relation, key) do update set columns = y.columns || excluded.columns;
        update pg_temp.collision c set due = false where c.due;
    end loop;
    return v_settled;
end
$$;
comment on function syncagent._settle_collisions is 'take from rows that yield, staged or here, the value that another one has; recorded as conflicts; returns how many';

create function syncagent._log_yielded() returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_rows bigint;
begin
    if not exists (select from pg_temp.yielded) then
        return 0;
    end if;
    insert into syncagent.log (xid, relation, op, hlc, keys, odd, columns)
    select pg_current_xact_id(), y.relation, y.op, syncagent._tick(), array_agg(y.key), case when count(y.odd) > 0 then array_agg(y.odd) end, y.columns
    from (select y.*, (row_number() over (partition by y.relation, y.op, y.columns order by y.key) - 1) / 10000 as chunk from pg_temp.yielded y) as y
    group by y.relation, y.op, y.columns, y.chunk;
    select count(*) into v_rows from pg_temp.yielded;
    perform syncagent._empty('pg_temp.yielded');
    return v_rows;
end
$$;
comment on function syncagent._log_yielded is 'rows that have yielded are written by this site: the next cut ships them; returns how many';

create function syncagent._deferrable(p_table regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select exists (select from pg_constraint c where c.conrelid = p_table and c.contype in ('u', 'x') and c.condeferrable) $$;
comment on function syncagent._deferrable is 'whether a table has constraints that the server does not check while a batch is applied';

create function syncagent._check_deferrable(p_relation integer, p_keys uuid[] default null) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_found boolean;
    r       record;
begin
    -- The server checks these by triggers, and those do not fire while a batch is applied.
    for r in select * from syncagent._rules(p_relation) as u where u.is_deferrable loop
        execute (select syncagent._render($sql$
            select exists (
                select from (select {expressions}, t."$key" as key from {came} as t {predicate}) as x
                join (select {expressions}, t."$key" as key from (select t.*, {key} as "$key" from {table} t) as t {predicate}) as y on {equal}
                where x.key <> y.key)
            $sql$, k.tokens || jsonb_build_object('predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
                'came', syncagent._render(case when p_keys is null then '(select t.*, s._key as "$key" from {stage} s join {table} t on {t_eq_s})'
                    else '(select t.*, {key} as "$key" from {table} t where {key} = any ($1))' end, k.tokens)))
            from (select syncagent._tokens(p_relation) as tokens) as k) into v_found using p_keys;
        if v_found then
            if r.kind = 'unique' then
                raise unique_violation using message = format('another row has the value of %s', r.name), constraint = r.name;
            end if;
            raise exclusion_violation using message = format('another row has the value of %s', r.name), constraint = r.name;
        end if;
    end loop;
end
$$;
comment on function syncagent._check_deferrable is 'raise what a deferrable unique or exclusion constraint would say of the rows that came, or of these';

-- Parked rows -----------------------------------------------------------------------------------------------

create function syncagent._parked_groups() returns table (relation integer, node integer, keys uuid[], stuck uuid[])
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select p.relation, p.node, array_agg(p.key),
           -- those that collide with a row that is here: one of them may be what keeps the others from yielding
           coalesce(case when count(*) > 1 then (array_agg(p.key order by random()) filter (where p.sqlstate in ('23505', '23P01')))[:20] end, '{}')
    from syncagent.parked_row p
    join syncagent.replicated t on t.id = p.relation join pg_class c on c.oid = t.relation
    group by 1, 2 order by 1, 2
$$;
comment on function syncagent._parked_groups is 'parked rows of each table and origin, which are tried together, and some that are then to be tried alone';

create function syncagent._retry(p_relation integer, p_node integer, p_keys uuid[]) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_seen pg_snapshot;
begin
    perform syncagent._empty('pg_temp.verdict');
    perform syncagent._fit_stage(r, r.columns) from syncagent.replicated r where r.id = p_relation;
    execute format('select syncagent.unpark_%s($1, $2)', p_relation) using p_node, p_keys;
    v_seen := pg_current_snapshot();
    execute format('select syncagent.judge_%s($1, true)', p_relation) using p_node;
    perform syncagent._write_carefully(p_relation, p_node, true);
    execute format('select syncagent.recheck_%s($1)', p_relation) using v_seen;
    if exists (select from syncagent.alias) then
        perform syncagent._note_astray(p_relation);
    end if;
    perform syncagent._bring_together();
    perform syncagent._log_yielded();
    execute format('truncate pg_temp.stage_%s', p_relation);
end
$$;
comment on function syncagent._retry is 'try parked rows of one table and origin again, together';

create function syncagent._try_held() returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in
        select p.relation, p.node, array_agg(p.key) as keys
        from syncagent.parked_row p join syncagent.replicated t on t.id = p.relation join pg_class c on c.oid = t.relation
        where p.sqlstate in ('23503', '55P03') group by 1, 2 order by 1, 2
    loop
        perform set_config('syncagent.knot', '', true), set_config('syncagent.context', '', true),   -- these are of other cuts
            set_config('syncagent.put_off', 'on', true);
        begin
            perform syncagent._retry(r.relation, r.node, r.keys);
        exception when sqlstate 'SA101' or lock_not_available then
            null;   -- others are at one of the rows: after this batch again
        end;
    end loop;
end
$$;
comment on function syncagent._try_held is 'once all is there that comes at once: rows that wait for others are tried again, and come with them';

create function syncagent._may_park(p_state text) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
    as $$ select left(p_state, 2) in ('22', '23', '38', '39', 'P0') or p_state = '42883' $$;
comment on function syncagent._may_park is 'whether an error is one row''s doing: it breaks a constraint, or a function that a CHECK calls raises or does not find what it calls';

create function syncagent._write_carefully(p_relation integer, p_origin integer, p_settle boolean) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_count bigint;
    v_state text;
    v_said  text;
    v_constraint text;
    v_parked bigint;
    -- until this site is a member its rows are of several moments: one value may be at two rows that never had it at once
    v_settle boolean := p_settle and not (select s.joining from syncagent.local_site s);
begin
    loop
        begin
            execute format('select syncagent.write_%s($1)', p_relation) into v_count using p_origin;
            return v_count;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate, v_said = message_text, v_constraint = constraint_name;
            if not syncagent._may_park(v_state) then
                raise;
            end if;
            if exists (select from syncagent.replicated t cross join lateral syncagent._nodes(t.relation) as x (node)
                       join pg_constraint c on c.conrelid = x.node
                       where t.id = p_relation and c.contype = 'p' and c.conname = v_constraint) then
                raise exception 'a row with a key of the batch appeared meanwhile' using errcode = 'SA101';
            end if;
        end;
        if v_settle then
            v_count := syncagent._write_settled(p_relation, p_origin);
            if v_count is not null then
                return v_count;
            end if;
            v_settle := false;   -- one that cannot yield keeps the others from it: each is tried alone once it is parked
        end if;
        -- Rows that collide with rows outside the batch first: exact, whatever passes between rows inside it.
        continue when syncagent._park_collisions(p_relation) > 0;
        select count(*) into v_parked from pg_temp.verdict d where d.reason is not null;
        perform syncagent._park_breakers(p_relation, p_origin);
        if v_parked = (select count(*) from pg_temp.verdict d where d.reason is not null) then
            raise exception 'the batch cannot be written, and no row of it is at fault: %', v_said using errcode = 'SA104';
        end if;
    end loop;
end
$$;
comment on function syncagent._write_carefully is 'write_N, settling collisions, or parking the rows that a constraint refuses; ends because every round parks at least one, or it is given up';

create function syncagent._write_settled(p_relation integer, p_origin integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_count bigint;
    v_state text;
begin
    perform syncagent._empty('pg_temp.collision');
    loop
        if syncagent._settle_collisions(p_relation, p_origin) = 0 then
            raise exception using errcode = 'SA000';   -- what is still refused is something else
        end if;
        begin
            execute format('select syncagent.write_%s($1)', p_relation) into v_count using p_origin;
            return v_count;
        exception when unique_violation or exclusion_violation then
            null;   -- no row yields twice to one constraint, so this ends
        end;
    end loop;
exception when others then
    get stacked diagnostics v_state = returned_sqlstate;
    if v_state = 'SA000' or syncagent._may_park(v_state) then
        return null;
    end if;
    raise;
end
$$;
comment on function syncagent._write_settled is 'write_N once all collisions are settled, or null, and nothing has happened';

create function syncagent._park_collisions(p_relation integer) returns bigint
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_tokens jsonb := syncagent._tokens(p_relation);
    v_parked bigint := 0;
    v_count  bigint;
    v_state  text;
    r        record;
begin
    for r in select * from syncagent._rules(p_relation) as u order by u.name loop
        begin
            execute syncagent._render($sql$
                insert into pg_temp.verdict (key, loses, conflict, kind, incoming, sqlstate, reason)
                select distinct on (x.key) x.key, true, false, 'parked', x.stamp, {state}, format('another row has the value of %s', {name})
                from (select {expressions}, t."$key" as key, t."$stamp" as stamp from (
                        select {stage_as_table}, s._key as "$key", s._stamp as "$stamp" from {stage} s
                        where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses)
                     ) as t {predicate}) as x
                join (select {expressions}, t."$key" as key from (select t.*, {key} as "$key" from {table} t) as t {predicate}) as y on {equal}
                where x.key <> y.key
                  and not exists (
                    select from {stage} s where s._key = y.key
                    and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses))
                $sql$,
                v_tokens || jsonb_build_object('name', quote_literal(r.name), 'predicate', r.predicate, 'expressions', r.expressions, 'equal', r.equal,
                    'state', case r.kind when 'unique' then quote_literal('23505') else quote_literal('23P01') end));
            get diagnostics v_count = row_count;
            v_parked := v_parked + v_count;
        exception when others then
            get stacked diagnostics v_state = returned_sqlstate;
            if not syncagent._may_park(v_state) then
                raise;
            end if;
            continue;   -- a value that the index's own expression refuses: found row by row
        end;
    end loop;
    return v_parked;
end
$$;
comment on function syncagent._park_collisions is 'mark staged rows whose unique values are held by rows outside the batch';

create function syncagent._park_breakers(p_relation integer, p_origin integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
#variable_conflict use_column
declare
    v_keys  uuid[];
    v_low   integer := 1;
    v_size  integer;
    v_state text;
    v_said  text;
begin
    -- Halve what is left until one row alone is refused beside all those accepted so far.
    execute syncagent._render(
        'select array(select s._key from {stage} s where s._deleted is not true and not exists (select from pg_temp.verdict d where d.key = s._key and d.loses) order by s._key)',
        syncagent._tokens(p_relation)) into v_keys;
    v_size := greatest(cardinality(v_keys), 1);
    while v_low <= cardinality(v_keys) loop
        begin
            insert into pg_temp.verdict (key, loses, kind) select k, true, 'later' from unnest(v_keys[v_low + v_size :]) as k;
            execute format('select syncagent.write_%s($1)', p_relation) using p_origin;
            raise exception using errcode = 'SA000';
        exception
            when sqlstate 'SA000' then
                v_low := v_low + v_size;
                v_size := v_size * 2;
                continue;
            when others then
                get stacked diagnostics v_state = returned_sqlstate, v_said = message_text;
                if not syncagent._may_park(v_state) then
                    raise;
                end if;
        end;
        if v_size > 1 then
            v_size := (v_size + 1) / 2;
        else
            insert into pg_temp.verdict (key, loses, conflict, kind, sqlstate, reason)
            values (v_keys[v_low], true, false, 'parked', v_state, v_said);
            v_low := v_low + 1;
        end if;
    end loop;
end
$$;
comment on function syncagent._park_breakers is 'mark staged rows that any other constraint refuses';

