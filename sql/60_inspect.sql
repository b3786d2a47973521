-- What people ask: views and functions that read, and never lock.

create function syncagent._inspect_template() returns text
    language sql immutable
    as $template$ select $sql$
create function syncagent.key_of_{id}(p_key text) returns uuid
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select {key_of_text} $$;

create function syncagent.exists_{id}(p_key uuid) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp {pinned}
    as $$ select exists (select from {table} t where {key} = p_key) $$;
$sql$ $template$;
