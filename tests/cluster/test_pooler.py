"""A pooler that shares sessions: in front of the application it changes nothing, in front of the agent it may not be."""

from tests.support.cluster import Laboratory, Site
from tests.support.load import committed, load, share, verify
from tests.support.pgbouncer import needs_pgbouncer, pgbouncer


def backends(site: Site) -> int:
    """The application's sessions at the server."""
    return int(
        site.scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'application'"
        )
    )


@needs_pgbouncer
def test_the_application_comes_through_a_pooler(laboratory: Laboratory, seed: int) -> None:
    with laboratory.cluster(18, 15) as cluster:
        a, b = cluster
        with pgbouncer(a.server, "transaction", default_pool_size="2") as pooler:
            a.door = pooler.dsn(a.database.name)
            cluster.start()
            share(a)
            cluster.exchange()
            with load(cluster.sites, seed, writers=3) as writers:
                committed(writers, 200)
                assert 0 < backends(a) <= 2
            cluster.converges()
            verify(writers, cluster.sites)
            with a.connect() as session:
                session.execute(
                    "select pg_advisory_xact_lock(7); savepoint s; delete from item; rollback to s"
                )
                session.execute(
                    "insert into item values (-1, 'by a session of others', 1) on conflict do nothing"
                )
            cluster.converges()
            assert b.scalar("select name from item where id = -1") == "by a session of others"
