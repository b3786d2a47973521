-- The clock of the site and the stamps made of it.
--
-- One sequence in units of 1/4096 ms: strictly rising over all backends, never back with the wall clock,
-- surviving a crash. It runs at most two milliseconds ahead of the wall unless a larger stamp was seen, and
-- never behind it, so that a key made just before a write is always below that write's stamp.

create sequence syncagent.hlc as bigint minvalue 1 no cycle;
comment on sequence syncagent.hlc is 'hybrid logical clock of this site, in 1/4096 ms since 1970';

create function syncagent._wall() returns bigint
    language sql volatile parallel safe
    set search_path = pg_catalog, pg_temp
    as $$ select (date_part('epoch', clock_timestamp()) * 4096000)::bigint $$;

create function syncagent._raise_clock(p_floor bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
begin
    -- The block always rolls back, which releases the advisory lock even when the statement is cancelled
    -- inside it; what setval and nextval did stays.
    begin
        perform pg_advisory_xact_lock(1937337955, 1);
        if nextval('syncagent.hlc') < p_floor then
            perform setval('syncagent.hlc', p_floor + 8192);
        end if;
        raise exception using errcode = 'SA000';
    exception when sqlstate 'SA000' then
        null;
    end;
end
$$;
comment on function syncagent._raise_clock is 'bring the clock to at least the floor, plus two milliseconds if it was behind';

create function syncagent._tick() returns bigint
    language plpgsql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_clock bigint := nextval('syncagent.hlc');
    v_wall  bigint := (date_part('epoch', clock_timestamp()) * 4096000)::bigint;
begin
    if v_clock < v_wall then
        perform syncagent._raise_clock(v_wall);
        v_clock := nextval('syncagent.hlc');
    end if;
    return v_clock;
end
$$;
comment on function syncagent._tick is 'the next clock value of this site';

create function syncagent._lift(p_seen bigint) returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
    as $$
declare
    v_clock bigint := syncagent._tick();
begin
    if p_seen - v_clock >= 8192 then
        perform syncagent._raise_clock(p_seen + 1);
    else
        while v_clock <= p_seen loop
            v_clock := nextval('syncagent.hlc');
        end loop;
    end if;
end
$$;
comment on function syncagent._lift is 'after this every new clock value is larger than the one seen';

-- Stamps: 48 bits of milliseconds, version 7, 12 bits of fraction and counter, variant, 16 bits of node, 46 bits.

create function syncagent._tail(p_node integer, p_seed bigint) returns bigint
    language sql immutable parallel safe
    as $$ select (-9223372036854775808) | (p_node::bigint << 46) | (p_seed & 70368744177663) $$;
comment on function syncagent._tail is 'lower half of a stamp';

create function syncagent._stamp(p_hlc bigint, p_tail bigint) returns uuid
    language sql immutable parallel safe
    as $$ select pg_catalog.encode(pg_catalog.int8send(((p_hlc >> 12) << 16) | 28672 | (p_hlc & 4095)) || pg_catalog.int8send(p_tail), 'hex')::uuid $$;
comment on function syncagent._stamp is 'the stamp with this clock and this lower half';

create function syncagent._timed(p_key uuid) returns boolean
    language sql immutable parallel safe
    as $$ select (get_byte(uuid_send(p_key), 6) & 240) = 112 and (get_byte(uuid_send(p_key), 8) & 192) = 128 $$;
comment on function syncagent._timed is 'whether a key says when its row was born (UUID version 7)';

create function syncagent._implicit(p_key uuid) returns uuid
    language sql immutable parallel safe
    as $$ select case when syncagent._timed(p_key) then p_key else '00000000-0000-0000-0000-000000000000'::uuid end $$;
comment on function syncagent._implicit is 'stamp of a row without a version entry: its key, or zero if the key has no time';

create function syncagent._hlc(p_stamp uuid) returns bigint
    language sql immutable strict parallel safe
    set search_path = pg_catalog, pg_temp
    as $$
    select (('x' || substr(v, 1, 12))::bit(48)::bigint << 12) | ('x' || substr(v, 14, 3))::bit(12)::integer
    from (select replace(p_stamp::text, '-', '')) as t (v)
$$;
comment on function syncagent._hlc is 'clock of a stamp, in 1/4096 ms';

create function syncagent._name_uuid(p_name text) returns uuid
    language plpgsql immutable strict parallel safe   -- kept as a plan, and with no search_path of its own: called for each of many rows
    as $$
declare
    v bytea := pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(p_name, 'UTF8')), 1, 16);
begin
    v := pg_catalog.set_byte(v, 6, (pg_catalog.get_byte(v, 6) operator(pg_catalog.&) 15) operator(pg_catalog.|) 128);
    v := pg_catalog.set_byte(v, 8, (pg_catalog.get_byte(v, 8) operator(pg_catalog.&) 63) operator(pg_catalog.|) 128);
    return pg_catalog.encode(v, 'hex')::pg_catalog.uuid;
end
$$;
comment on function syncagent._name_uuid is 'name-based UUID (version 8) of a text: keys of derived rows, ids of conflicts';

create function syncagent.uuid7() returns uuid
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select syncagent._stamp(syncagent._tick(), syncagent._tail(coalesce((select node from syncagent.local_site), 0),
        ('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint))
$$;
comment on function syncagent.uuid7() is 'a new key: UUID version 7 that says when and at which site its row was born';

create function syncagent.stamp_time(p_stamp uuid) returns timestamptz
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$ select case when syncagent._timed(p_stamp) then to_timestamp(syncagent._hlc(p_stamp) / 4096000.0) end $$;
comment on function syncagent.stamp_time(uuid) is 'when a stamp or a UUIDv7 key was made; null for a key without a time';

create function syncagent.stamp_node(p_stamp uuid) returns integer
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$
    select case when syncagent._timed(p_stamp)
        then (('x' || substr(replace(p_stamp::text, '-', ''), 17, 16))::bit(64)::bigint >> 46 & 65535)::integer end
$$;
comment on function syncagent.stamp_node(uuid) is 'node that made a stamp, or a key of syncagent.uuid7()';

create function syncagent.uuid7_floor(p_time timestamptz) returns uuid
    language sql immutable strict parallel safe security definer
    set search_path = pg_catalog, pg_temp
    as $$ select syncagent._stamp((date_part('epoch', p_time) * 4096000)::bigint, (-9223372036854775808)) $$;
comment on function syncagent.uuid7_floor(timestamptz) is 'the smallest UUIDv7 of a moment: where id >= syncagent.uuid7_floor(now() - interval ''1 day'')';
