-- Fingerprints of rows: what two sites compare instead of the rows.
--
-- A row's fingerprint is two lanes of 64 bits: `hashtextextended` with two seeds over the row's text, or, where the cluster has
-- agreed on it, the first half of its sha256. Only columns that
-- are not null take part, each with its name, in the order of their names: so a new column that is null everywhere, or
-- another order of columns, changes no fingerprint. Text that can hold anything is quoted, so no two rows have one text.
-- Sets of rows have a count and the lanes' sums modulo 2^64, which add up: sums, not XOR, which cancels pairs.
--
-- The text is what output functions write, so it is the exact value: 1.0 is not 1.00, json is to the byte. It depends on
-- settings, which every session of the agent pins, and functions here set themselves.

create function syncagent._fingerprint_text(p_table regclass, p_columns name[]) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    -- concat takes a hundred arguments, and leaves out nulls
    select string_agg(format('concat(%s)', pieces), ' || ' order by chunk)
    from (
        select c.chunk, string_agg(
            format('case when t.%I is distinct from null then %L end, %s', c.name, ',' || quote_literal(c.name) || ':',
                   case when c.kind <> 'e' and c.type = any (array['int2', 'int4', 'int8', 'bool', 'uuid', 'float4', 'float8', 'numeric', 'date',
                            'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea', 'bit', 'varbit', 'inet', 'cidr', 'macaddr', 'macaddr8']::regtype[])
                        then format('t.%I', c.name)
                        when c.type = any (array['bpchar', 'char', '"char"', 'name']::regtype[])   -- a cast would strip it
                        then format('case when t.%1$I is distinct from null then quote_literal(concat(t.%1$I)) end', c.name)
                        else format('quote_literal(t.%I::text)', c.name) end),
            ', ' order by c.n) as pieces
        from (
            select a.attname as name, syncagent._base_type(a.atttypid) as type, t.typtype as kind,
                   row_number() over (order by a.attname collate "C") as n,
                   (row_number() over (order by a.attname collate "C") - 1) / 40 as chunk
            from pg_attribute a join pg_type t on t.oid = syncagent._base_type(a.atttypid)
            where a.attrelid = p_table and a.attname = any (p_columns)
        ) as c
        group by c.chunk
    ) as g
$$;
comment on function syncagent._fingerprint_text is 'the expression for the text of a row t that is hashed; for a session with the agent''s settings';

create function syncagent._fingerprint_kind() returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$ select coalesce((select s.fingerprint from syncagent.local_site s), 'hash') $$;
comment on function syncagent._fingerprint_kind is 'what rows are compared by: hash, or sha256';

create function syncagent._hashed(p_text text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format(case syncagent._fingerprint_kind() when 'sha256' then 'sha256(convert_to((%s), getdatabaseencoding()))' else '(%s) collate "C"' end, p_text)
$$;
comment on function syncagent._hashed is 'the expression that is computed once of the expression of a text; _lanes makes two numbers of it';

create function syncagent._lanes(p_hashed text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format(case syncagent._fingerprint_kind()
        when 'sha256' then '(''x'' || encode(substr(%1$s, 1, 8), ''hex''))::bit(64)::bigint as lane_0, (''x'' || encode(substr(%1$s, 9, 8), ''hex''))::bit(64)::bigint as lane_1'
        else 'hashtextextended(%1$s, 0) as lane_0, hashtextextended(%1$s, 7640891576956012808) as lane_1' end, p_hashed)
$$;
comment on function syncagent._lanes is 'the expressions for the two lanes of what _hashed has computed';

create function syncagent._fingerprint_query(p_table regclass, p_columns name[], p_where text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
    as $$
    select format('select count(*) as rows, syncagent._modulo(sum(s.lane_0)) as lane_0, syncagent._modulo(sum(s.lane_1)) as lane_1'
                  ' from (select %s from (select %s as row from %s%I.%I t where %s offset 0) as r) as s',
                  syncagent._lanes('r.row'), syncagent._hashed(coalesce(syncagent._fingerprint_text(p_table, p_columns), '''''')), case c.relkind when 'p' then '' else 'only ' end,
                  n.nspname, c.relname, p_where)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table
$$;
comment on function syncagent._fingerprint_query is 'the query for count and lanes of the rows t of a table for which a condition holds';

create function syncagent._modulo(p_sum numeric) returns bigint
    language sql immutable parallel safe
    as $$
    select (case when m >= 9223372036854775808 then m - 18446744073709551616 when m < -9223372036854775808 then m + 18446744073709551616 else m end)::bigint
    from (select pg_catalog.mod(coalesce(p_sum, 0), 18446744073709551616)) as x (m)
$$;
comment on function syncagent._modulo is 'a sum modulo 2^64, as a signed number';

create function syncagent._fingerprint(p_table regclass, p_columns name[], p_where text default 'true',
                                       out rows bigint, out lane_0 bigint, out lane_1 bigint)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, MDY' set timezone = 'UTC' set intervalstyle = 'postgres' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
    as $$
begin
    execute syncagent._fingerprint_query(p_table, p_columns, p_where) into rows, lane_0, lane_1;
end
$$;
comment on function syncagent._fingerprint is 'count and lanes of the rows t of a table for which a condition holds';
