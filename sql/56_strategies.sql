-- A table's strategy is changed while sites write: by steps of a schema change, each one transaction with its epoch.
--
-- The version of a row that wins whole (`lww`), and its tombstone, are a life that began with that write: of two lives the newer one wins,
-- as of two versions. So from `lww` one step is enough. From a strategy by column it takes two. First rows are logged *whole*: each write
-- begins a life, a delete one that has ended, while all sites still join by column (`replicated.whole`). When all do so, and what
-- each had written by column has come everywhere, the registers of columns are dropped. What they say is known to all by then, so with
-- them goes the stamp of the newest of them: a row's stamp is its life's. A site that wrote it whole meanwhile, without having
-- seen a column of it, has begun a newer life; that wins, whether it comes before the registers are dropped or after.
--
-- tests/model/strategies.py is this page as a program; docs/decisions/0017-strategies.md says what it found.

create function syncagent._whole_written(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                         p_new uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                         out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    as $$
begin
    stamp := p_stamp; node := p_node; cut := p_cut; deleted := coalesce(p_deleted, false); registers := coalesce(p_registers, '{}');
    if not p_alive and not p_gone or p_alive and deleted and p_new <= stamp   -- or it lives under a newer tombstone
       or p_new < (case when deleted then stamp else (registers -> '' ->> 0)::uuid end) then
        return;
    end if;
    stamp := p_new; node := p_me; cut := p_next; deleted := not p_alive;
    registers := jsonb_build_object('', jsonb_build_array(p_new, p_me, p_next));
end
$$;
comment on function syncagent._whole_written is 'the version entry of a row after the writes of a window of which the last was whole: it is a life, or the end of one that began with it';

-- As _written, or _merge_written: what was written before rows were logged whole is by column.
create function syncagent._whole_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.written_{id}(p_stamp uuid, p_node integer, p_cut bigint, p_deleted boolean, p_registers jsonb,
                                       p_log jsonb, p_new uuid, p_first uuid, p_me integer, p_next bigint, p_alive boolean, p_gone boolean,
                                       out stamp uuid, out node integer, out cut bigint, out deleted boolean, out registers jsonb)
    language plpgsql immutable
    as $$
begin
    if p_new >= {whole_from} then
        select w.* into stamp, node, cut, deleted, registers
        from syncagent._whole_written(p_stamp, p_node, p_cut, p_deleted, p_registers, p_new, p_me, p_next, p_alive, p_gone) as w;
    else
        select w.* into stamp, node, cut, deleted, registers
        from syncagent.{by_column}(p_stamp, p_node, p_cut, p_deleted, p_registers, p_log, p_new, p_first, p_me, p_next, p_alive, p_gone) as w;
    end if;
end
$$;
$sql$ $template$;

create function syncagent._whole_tokens(p_table syncagent.replicated) returns jsonb
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select jsonb_build_object('written', format('written_%s', p_table.id), 'first', 'false', 'whole_from', quote_literal(syncagent._stamp(p_table.whole, 0)) || '::uuid',
                              'by_column', case p_table.strategy when 'merge' then '_merge_written' else '_written' end)
$$;
comment on function syncagent._whole_tokens is 'what the templates of a table are filled with while its rows are logged whole';

create function syncagent._open_siblings(p_relation integer) returns bigint
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table syncagent.replicated;
    v_count bigint;
begin
    select * into strict v_table from syncagent.replicated where id = p_relation;
    if v_table.strategy <> 'merge' then
        return 0;
    end if;
    execute format($sql$
        select count(*) from syncagent.version_%1$s v where not v.deleted and exists (
            select from jsonb_each(v.registers) as e where (coalesce($1 ->> e.key, 'latest') = 'latest' or not syncagent._are_made(%1$s, v.key, v.registers, array[e.key]) and $1 ->> e.key like 'function:%%') and jsonb_typeof(e.value) = 'object'
            and (select count(*) from jsonb_object_keys(e.value)) > 1) $sql$, p_relation) into v_count using v_table.merges;
    return v_count;
end
$$;
comment on function syncagent._open_siblings is 'how many rows of a table have siblings that a person is to settle';

create function syncagent._not_everywhere() returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last   bigint := coalesce((select max(c.number) from syncagent.cut c), 0);
    v_whole  bigint;
    v_count  bigint;
    r        record;
begin
    for r in select t.id, format('%I.%I', t.schema_name, t.table_name) as name from syncagent.replicated t where t.whole is not null order by t.id loop
        v_count := syncagent._open_siblings(r.id);
        if v_count > 0 then
            return format('%s row(s) of %s have siblings that nobody has settled: `syncagent conflicts list --open`', v_count, r.name);
        end if;
    end loop;
    select max(t.whole_cut) into v_whole from syncagent.replicated t where t.whole is not null;
    if v_last < v_whole and syncagent._pending() or exists (
            select from syncagent._stable() s join syncagent.frontier f on f.node = s.node
            where s.cut < case when s.node = (select me.node from syncagent.local_site me) then least(v_whole, f.needed)
                               when s.node not in (select m.node from syncagent.member m) then f.needed else 0 end) then
        return 'what was written here by column has not come to every site yet';
    end if;
    return null;
end
$$;
comment on function syncagent._not_everywhere is 'what keeps writes by column, made here before rows were logged whole, from being known everywhere; null if nothing does';

create function syncagent._strategize(p_schema name, p_table name, p_strategy text, p_merges jsonb, p_whole boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_table   syncagent.replicated;
    v_problem record;
begin
    select r.* into v_table from syncagent.replicated r join pg_class c on c.oid = r.relation where (r.schema_name, r.table_name) = (p_schema, p_table);
    if not found then
        return;   -- detached meanwhile, or not attached here yet: then it is attached as the catalog says
    end if;
    select string_agg(o.problem, '; ') as problems, string_agg(o.hint, '; ') as hints into v_problem
    from syncagent._merge_obstacles(v_table.relation, p_strategy, p_merges) as o where (v_table.strategy, v_table.merges) <> (p_strategy, p_merges);
    if v_problem.problems is not null then
        raise exception 'table %.% cannot be merged so: %', quote_ident(p_schema), quote_ident(p_table), v_problem.problems
            using errcode = 'SA002', hint = coalesce(v_problem.hints, '');
    end if;
    execute format('lock table %s in access exclusive mode', v_table.relation);   -- whoever has written has ended, and who writes next comes after this
    if (v_table.strategy, v_table.merges) <> (p_strategy, p_merges) then
        if v_table.strategy = 'lww' then
            execute format('alter table syncagent.version_%s add column registers jsonb not null default ''{}''', v_table.id);
            perform syncagent._rows_to_lives(v_table.id);
        else
            perform syncagent._columns_to_lives(v_table.id, p_strategy = 'lww');
        end if;
        if p_strategy = 'lww' then
            execute format('alter table syncagent.version_%s drop column registers', v_table.id);
        end if;
    elsif p_whole then   -- a key ahead of the clock, which an attached row may have, is above the lives to come
        execute format('update syncagent.version_%s v set registers = jsonb_build_object('''', jsonb_build_array(v.stamp, v.node, v.cut))'
                       ' where v.registers = ''{}'' and v.stamp < syncagent._implicit(v.key)', v_table.id);
    end if;
    if p_strategy <> 'lww' and not p_whole then
        perform syncagent._uncut_to_lives(v_table);
    end if;
    update syncagent.replicated r set strategy = p_strategy, merges = p_merges, whole = case when p_whole then syncagent._tick() end,
        whole_cut = case when p_whole then coalesce((select max(c.number) from syncagent.cut c), 0) + 1 end
    where r.id = v_table.id;
    perform syncagent._generate(v_table.id);
end
$$;
comment on function syncagent._strategize is 'from here on a table is merged like this; whole: and its rows are logged whole, until the cuts that have columns have come everywhere';

create function syncagent._rows_to_lives(p_relation integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    execute format('update syncagent.version_%s v set registers = jsonb_build_object('''', jsonb_build_array(v.stamp, v.node, v.cut))', p_relation);
    update syncagent.parked_row p
    set registers = case when p.stamp = syncagent._implicit(p.key) then '{}' else jsonb_build_object('', jsonb_build_array(p.stamp, p.node, p.cut)) end
    where p.relation = p_relation;
end
$$;
comment on function syncagent._rows_to_lives is 'a version of a row that wins whole is a life that began with it';

create function syncagent._columns_to_lives(p_relation integer, p_whole boolean) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    delete from syncagent.merge_result where relation = p_relation;
    -- of a life that has no entry nothing is left to be known: the row is as all have it
    execute format('delete from syncagent.version_%s v where not v.deleted and not v.registers ? '''' and v.registers <> ''{}''', p_relation);
    execute format('update syncagent.version_%s v set stamp = l.stamp, node = l.node, cut = l.cut, registers = syncagent._life(v.registers)'
                   ' from (select x.key, (x.registers -> '''' ->> 0)::uuid as stamp, (x.registers -> '''' ->> 1)::integer as node, (x.registers -> '''' ->> 2)::bigint as cut'
                   '       from syncagent.version_%1$s x where not x.deleted and x.registers ? '''') as l where v.key = l.key', p_relation);
    if p_whole then   -- a life that has ended: what begins anew is newer than the life, whatever the stamp of its end
        execute format('update syncagent.version_%s v set stamp = coalesce((v.registers -> '''' ->> 0)::uuid, syncagent._implicit(v.key)) where v.deleted', p_relation);
    end if;
    update syncagent.parked_row p
    set stamp = coalesce((p.registers -> '' ->> 0)::uuid, syncagent._implicit(p.key)), node = coalesce((p.registers -> '' ->> 1)::integer, p.node),
        cut = coalesce((p.registers -> '' ->> 2)::bigint, p.cut), registers = case when not p_whole then syncagent._life(p.registers) end
    where p.relation = p_relation;
end
$$;
comment on function syncagent._columns_to_lives is 'drop what is known of columns; whole: what stays are versions of rows that win whole';

create function syncagent._uncut_to_lives(p_table syncagent.replicated) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last record := syncagent._last_cut();
begin
    -- what was written whole stays so, however rows are joined when the next cut has it
    update syncagent.log l set columns = null, deltas = null
    where l.relation = p_table.id and l.columns is not null and l.hlc >= p_table.whole and (l.xid >= v_last.xmax or l.xid = any (v_last.xip));
    execute format($sql$
        update syncagent.version_%s v set registers = jsonb_set(v.registers, array['', '2'], to_jsonb($1))
        where v.registers -> '' -> 2 = 'null' and (v.registers -> '' ->> 1)::integer = (select s.node from syncagent.local_site s) $sql$, p_table.id)
    using coalesce(v_last.number, 0) + 1;
end
$$;
comment on function syncagent._uncut_to_lives is 'writes that no cut has, and that were whole, are lives of the next cut';
