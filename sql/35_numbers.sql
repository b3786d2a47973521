-- Numbers that every site draws for itself: serial and identity columns, made so that no two sites draw the same.
--
-- With a stride of N a site draws only numbers that leave its node's remainder when divided by N. Numbers that were drawn
-- before, here or at another site, are left behind: the sequence starts above them, and apply lifts it above what arrives.

create function syncagent._numbered(p_table regclass) returns table (column_name name, sequence regclass, counts boolean, is_unique boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select a.attname, d.sequence::regclass, syncagent._base_type(a.atttypid) = any (array['int2', 'int4', 'int8']::regtype[]),
           exists (select from pg_index i where i.indrelid = p_table and i.indisunique and a.attnum = any (i.indkey))
    from (
        select refobjsubid as number, objid as sequence from pg_depend   -- identity
        where classid = 'pg_class'::regclass and refclassid = 'pg_class'::regclass and refobjid = p_table and refobjsubid > 0 and deptype = 'i'
        union
        select f.adnum, e.refobjid from pg_attrdef f
        join pg_depend e on e.classid = 'pg_attrdef'::regclass and e.objid = f.oid and e.refclassid = 'pg_class'::regclass
        where f.adrelid = p_table
    ) as d
    join pg_class c on c.oid = d.sequence and c.relkind = 'S'
    join pg_attribute a on a.attrelid = p_table and a.attnum = d.number
    order by a.attnum
$$;
comment on function syncagent._numbered is 'columns that take their values from a sequence; those that count are integers';

create function syncagent._stride(p_id integer, p_every integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_node  integer := (select s.node from syncagent.local_site s);
    v_said  text := format('table %s cannot be attached with a stride of %s: ', (select r.relation from syncagent.replicated r where r.id = p_id), p_every);
    v_first bigint;
    v_most  bigint;
    r       record;
begin
    if v_node >= p_every then
        raise exception '%this site is node %', v_said, v_node
            using errcode = 'SA002', hint = 'choose a stride larger than the node of any site there will ever be, the same at every site';
    end if;
    for r in
        select n.*, t.relation, q.seqincrement, q.seqmin, q.seqcycle, format('%I.%I', sn.nspname, sc.relname) as name,
               least(q.seqmax, case syncagent._base_type(a.atttypid)
                   when 'int2'::regtype then 32767 when 'int4'::regtype then 2147483647 else 9223372036854775807 end) as seqmax,
               (select x.before from syncagent.stride x where x.sequence = n.sequence limit 1) as before,
               (select x.every from syncagent.stride x where x.sequence = n.sequence limit 1) as every
        from syncagent.replicated t cross join lateral syncagent._numbered(t.relation) as n
        join pg_sequence q on q.seqrelid = n.sequence join pg_class sc on sc.oid = n.sequence join pg_namespace sn on sn.oid = sc.relnamespace
        join pg_attribute a on a.attrelid = t.relation and a.attname = n.column_name
        where t.id = p_id and n.counts
    loop
        if r.every is distinct from p_every then
            if r.seqincrement <> 1 then
                raise exception '%sequence % counts in steps of % already', v_said, r.name, r.seqincrement
                    using errcode = 'SA002', hint = format('alter sequence %s increment by 1, or attach the table without --stride', r.name);
            elsif r.seqcycle then
                raise exception '%sequence % begins anew when it ends', v_said, r.name
                    using errcode = 'SA002', hint = format('alter sequence %s no cycle', r.name);
            end if;
        end if;
        execute format('select greatest(case when s.is_called then s.last_value + 1 else s.last_value end, m.most + 1, %s), m.most'
                       ' from %s s cross join (select max(t.%I)::bigint as most from %s t) as m', r.seqmin, r.name, r.column_name, r.relation)
            into v_first, v_most;
        v_first := v_first + ((v_node - v_first) % p_every + p_every) % p_every;
        if v_first > r.seqmax - p_every then
            raise exception '%the numbers of % end at %, and % comes next', v_said, r.name, r.seqmax, v_first
                using errcode = 'SA002', detail = format('the largest number in column %I is %s', r.column_name, coalesce(v_most::text, 'none')),
                      hint = format('make column %I and sequence %s bigint, or attach the table without --stride', r.column_name, r.name);
        end if;
        execute format('alter sequence %s increment by %s restart with %s', r.name, p_every, v_first);
        insert into syncagent.stride (relation, column_name, sequence, every, before)
        values (p_id, r.column_name, r.sequence, p_every, coalesce(r.before, r.seqincrement));
    end loop;
end
$$;
comment on function syncagent._stride is 'let the sequences of an attached table draw only this site''s share of the numbers';

create function syncagent._unstride(p_id integer) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    r record;
begin
    for r in
        delete from syncagent.stride x where x.relation = p_id
        returning x.sequence, x.before
    loop
        if exists (select from pg_class c where c.oid = r.sequence)
           and not exists (select from syncagent.stride x where x.sequence = r.sequence) then
            execute format('alter sequence %s increment by %s', r.sequence, r.before);
        end if;
    end loop;
end
$$;
comment on function syncagent._unstride is 'let the sequences of a table count as they did before it was attached';

create function syncagent._lift_number(p_id integer, p_column name, p_number bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_last bigint;
    v_next bigint;
    r      record;
begin
    if p_number is null then
        return;
    end if;
    for r in
        select x.sequence, x.every, q.seqmax, s.node
        from syncagent.stride x join pg_sequence q on q.seqrelid = x.sequence cross join syncagent.local_site s
        where x.relation = p_id and x.column_name = p_column and q.seqincrement = x.every
    loop
        execute format('select last_value from %s', r.sequence) into v_last;
        continue when p_number < v_last or p_number > r.seqmax - 2 * r.every;
        -- Writers draw meanwhile, and must not be set back: a short way is drawn, a long one nobody else goes at the same time.
        if (p_number - v_last) / r.every < 1000 then
            while v_last <= p_number loop
                v_last := nextval(r.sequence);
            end loop;
        else
            v_next := p_number + 1;
            perform setval(r.sequence, v_next + ((r.node - v_next) % r.every + r.every) % r.every, false);
        end if;
    end loop;
end
$$;
comment on function syncagent._lift_number is 'draw from now on above a number that has arrived';
