-- The shop's own tables: what it would have at one database, too.

create table product (
    id    uuid primary key,
    name  text not null,
    stock integer not null
);

create table customer (
    id    uuid primary key,
    email text not null constraint customer_email_key unique,
    name  text not null
);

create table cart (
    id       uuid primary key,
    customer uuid not null references customer,
    items    text[] not null default '{}'
);

create table sale (
    id       uuid primary key,
    customer uuid not null references customer,
    product  uuid not null references product,
    quantity integer not null
);
create index on cart (customer);
create index on sale (customer);
