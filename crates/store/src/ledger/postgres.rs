//! The ledger in PostgreSQL: one table in the schema the connection begins in.
//!
//! Rows travel as one array per column, so a thousand of them are one statement and one round
//! trip. Every wait ends: five seconds for a connection, five for a statement, then the
//! connection is thrown away and made anew. A statement that was given up may have been carried
//! out all the same; the key of the table makes carrying it out again change nothing. Statements
//! are not kept prepared, so a pooler may stand in between.

mod address;
mod tls;

pub(super) use address::Address;

use super::{
    database::{Database, Trouble},
    query::{self, Dialect},
    record::{self, Row},
};
use futures_util::{FutureExt as _, future::BoxFuture};
use std::{
    error::Error as _,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_core::{Error, Kind, Origin, Result, UsageQuery, UsageRow};
use tokio::{runtime::Runtime, time::timeout};
use tokio_postgres::{
    Client,
    error::SqlState,
    types::{ToSql, Type},
};

/// Longest time a connection takes to be made and looked at.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time a statement takes, its round trip included.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for sums, which may read a whole table.
const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// Rows of one statement: a slow database has to get it done in that time.
const MOST_ROWS: usize = 1_000;

/// The version of the tables after all [`STEPS`].
const VERSION: i32 = STEPS.len() as i32;

/// Where it is said which version a database has.
const CREATE_VERSIONS: &str = "CREATE TABLE IF NOT EXISTS tidegate_schema (
        part text PRIMARY KEY,
        version integer NOT NULL
    )";

/// What each version added. A step that was released is never changed: a new one is added.
///
/// Text is compared byte by byte, so that sums come in the order SQLite gives them. A block range
/// index fits rows that come nearly in order of time, and costs next to nothing.
const STEPS: [&str; 2] = [
    r#"
    CREATE TABLE tidegate_ledger (
        writer bigint NOT NULL,
        sequence bigint NOT NULL,
        at timestamptz NOT NULL,
        took bigint NOT NULL,
        call text COLLATE "C" NOT NULL,
        attempt integer NOT NULL,
        cause text COLLATE "C" NOT NULL,
        caller text COLLATE "C" NOT NULL,
        team text COLLATE "C",
        operation text COLLATE "C" NOT NULL,
        model text COLLATE "C" NOT NULL,
        upstream text COLLATE "C" NOT NULL,
        upstream_model text COLLATE "C" NOT NULL,
        failure text COLLATE "C",
        input bigint NOT NULL,
        cached_input bigint NOT NULL,
        output bigint NOT NULL,
        reasoning bigint NOT NULL,
        told boolean NOT NULL,
        cost bigint,
        PRIMARY KEY (writer, sequence)
    );
    CREATE INDEX tidegate_ledger_at ON tidegate_ledger USING brin (at) WITH (pages_per_range = 32);
    COMMENT ON COLUMN tidegate_ledger.took IS 'microseconds';
    COMMENT ON COLUMN tidegate_ledger.cost IS 'picodollars (10^-12 USD); NULL: no price is known';
    INSERT INTO tidegate_schema (part, version) VALUES ('ledger', 1);
"#,
    r#"
    ALTER TABLE tidegate_ledger ADD COLUMN cache_write bigint NOT NULL DEFAULT 0;
    COMMENT ON COLUMN tidegate_ledger.cache_write IS 'part of the input, as cached_input is';
    UPDATE tidegate_schema SET version = 2 WHERE part = 'ledger';
"#,
];

const INSERT: &str = "INSERT INTO tidegate_ledger (writer, sequence, at, took, call, attempt,
        cause, caller, team, operation, model, upstream, upstream_model, failure, input,
        cached_input, cache_write, output, reasoning, told, cost)
    SELECT $1, rows.* FROM unnest($2::bigint[], $3::timestamptz[], $4::bigint[], $5::text[],
        $6::integer[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[],
        $13::text[], $14::text[], $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[],
        $19::bigint[], $20::boolean[], $21::bigint[]) AS rows
    ON CONFLICT DO NOTHING";

const SELECT_VERSION: &str = "SELECT version FROM tidegate_schema WHERE part = 'ledger'";

const FORGET: &str = "DELETE FROM tidegate_ledger WHERE (writer, sequence) IN
    (SELECT writer, sequence FROM tidegate_ledger WHERE at < $1 LIMIT $2)";

const DIALECT: Dialect = Dialect {
    parameter: '$',
    day: "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    instant: |micros| format!("TIMESTAMPTZ 'epoch' + {micros} * INTERVAL '1 microsecond'"),
};

impl Address {
    /// A connection to a database that has our tables.
    async fn connect(&self, statement: Duration) -> Result<Session, Trouble> {
        let connecting = async {
            let connected = self.config.connect(self.tls.clone()).await;
            let (client, connection) = connected.map_err(|cause| self.refused(cause))?;
            let mut session = Session { client, connection: connection.map(drop).boxed().shared() };
            let millis = statement.as_millis();
            let set = format!("SET statement_timeout = {millis}; SET lock_timeout = {millis}");
            session.drive(async |client: &mut Client| client.batch_execute(&set).await).await?;
            session.prepare_tables().await?;
            Ok(session)
        };
        timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(Trouble { why: "no answer to a new connection within 5 s".to_owned() })
        })
    }

    /// Why there is no connection. Whatever listens there has been told the password, and is not
    /// to repeat it.
    fn refused(&self, cause: tokio_postgres::Error) -> Trouble {
        let Trouble { why } = Trouble::of(cause);
        let password = self.config.get_password().map(String::from_utf8_lossy);
        match password.filter(|password| !password.is_empty()) {
            Some(password) => Trouble { why: why.replace(&*password, "[redacted]") },
            None => Trouble { why },
        }
    }
}

/// A connection, and the task that moves its bytes, which runs only while somebody waits.
struct Session {
    client: Client,
    connection: futures_util::future::Shared<BoxFuture<'static, ()>>,
}

impl Session {
    /// Does `work` while the connection's bytes move.
    async fn drive<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Trouble> {
        let working = work(&mut self.client);
        let mut working = std::pin::pin!(working);
        let ended = self.connection.clone();
        tokio::select! {
            biased;
            done = &mut working => done,
            // Closed: the work is told so.
            () = ended => working.await,
        }
        .map_err(Trouble::of)
    }

    async fn prepare_tables(&mut self) -> Result<(), Trouble> {
        let found = self
            .drive(async |client: &mut Client| match version(client).await {
                Err(cause) if cause.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(None),
                found => found,
            })
            .await?;
        match found {
            Some(VERSION) => Ok(()),
            Some(newer) if newer > VERSION => Err(Trouble {
                why: format!(
                    "its tables were made by a newer Tidegate (version {newer}, this one knows \
                     {VERSION}): use that version"
                ),
            }),
            missing_or_older => self.drive(bring_up).await.map_err(|Trouble { why }| {
                let done = missing_or_older.unwrap_or_default();
                let whose = if why.contains(SqlState::INSUFFICIENT_PRIVILEGE.code()) {
                    ": connect once as their owner"
                } else {
                    ""
                };
                let what = format!("its tables cannot be brought from version {done} to {VERSION}");
                Trouble { why: format!("{what} ({why}){whose}") }
            }),
        }
    }
}

async fn version(client: &Client) -> Result<Option<i32>, tokio_postgres::Error> {
    let rows = client.query_typed(SELECT_VERSION, &[]).await?;
    rows.first().map(|row| row.try_get(0)).transpose()
}

/// Takes the steps that are missing, all or none; another process may be doing the same.
async fn bring_up(client: &mut Client) -> Result<(), tokio_postgres::Error> {
    let change = client.transaction().await?;
    change.batch_execute("SELECT pg_advisory_xact_lock(1413958727)").await?;
    change.batch_execute(CREATE_VERSIONS).await?;
    let rows = change.query_typed(SELECT_VERSION, &[]).await?;
    let done: i32 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    for step in STEPS.iter().skip(usize::try_from(done).unwrap_or(usize::MAX)) {
        change.batch_execute(step).await?;
    }
    change.commit().await
}

/// The ledger's writing connection, made when it is needed.
pub(super) struct Postgres {
    address: Arc<Address>,
    runtime: Runtime,
    session: Option<Session>,
}

impl Postgres {
    /// Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// When the system gives no event queue.
    pub(super) fn new(address: Arc<Address>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { address, runtime, session: None })
    }

    fn statement(
        &mut self,
        sql: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<u64, Trouble> {
        let Self { address, runtime, session } = self;
        runtime.block_on(async {
            // One that was closed while nobody looked is no news: another is made at once.
            if session.as_mut().is_none_or(Session::is_closed) {
                *session = Some(address.connect(STATEMENT_TIMEOUT).await?);
            }
            let open = session.as_mut().expect("made above");
            let executing =
                open.drive(async |client: &mut Client| client.execute_typed(sql, parameters).await);
            let done = within(STATEMENT_TIMEOUT, executing).await;
            if done.is_err() {
                *session = None;
            }
            done
        })
    }
}

impl Session {
    fn is_closed(&mut self) -> bool {
        // Looks at the socket once, without waiting for it.
        self.connection.clone().now_or_never().is_some() || self.client.is_closed()
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<T, Trouble> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Trouble { why: format!("no answer within {} s", limit.as_secs()) }))
}

impl Database for Postgres {
    fn insert(&mut self, writer: i64, rows: &[Row<'_>]) -> Result<(), Trouble> {
        // What was carried out of them before one failed is there, and is not there twice.
        rows.chunks(MOST_ROWS).try_for_each(|rows| self.insert_rows(writer, rows))
    }

    fn forget(&mut self, before: i64, most: u32) -> Result<u64, Trouble> {
        let before: SystemTime = record::instant(before);
        self.statement(FORGET, &[(&before, Type::TIMESTAMPTZ), (&i64::from(most), Type::INT8)])
    }
}

impl Postgres {
    fn insert_rows(&mut self, writer: i64, rows: &[Row<'_>]) -> Result<(), Trouble> {
        fn column<'r, T>(rows: &'r [Row<'_>], of: impl Fn(&'r Row<'_>) -> T) -> Vec<T> {
            rows.iter().map(of).collect()
        }
        let (integers, texts) = (Type::INT8_ARRAY, Type::TEXT_ARRAY);
        self.statement(
            INSERT,
            &[
                (&writer, Type::INT8),
                (&column(rows, |row| row.sequence), integers.clone()),
                (&column(rows, |row| record::instant(row.at)), Type::TIMESTAMPTZ_ARRAY),
                (&column(rows, |row| row.took), integers.clone()),
                (&column(rows, |row| row.call), texts.clone()),
                (&column(rows, |row| row.attempt), Type::INT4_ARRAY),
                (&column(rows, |row| row.cause), texts.clone()),
                (&column(rows, |row| row.caller), texts.clone()),
                (&column(rows, |row| row.team), texts.clone()),
                (&column(rows, |row| row.operation), texts.clone()),
                (&column(rows, |row| row.model), texts.clone()),
                (&column(rows, |row| row.upstream), texts.clone()),
                (&column(rows, |row| row.upstream_model), texts.clone()),
                (&column(rows, |row| row.failure), texts),
                (&column(rows, |row| row.input), integers.clone()),
                (&column(rows, |row| row.cached_input), integers.clone()),
                (&column(rows, |row| row.cache_write), integers.clone()),
                (&column(rows, |row| row.output), integers.clone()),
                (&column(rows, |row| row.reasoning), integers.clone()),
                (&column(rows, |row| row.told), Type::BOOL_ARRAY),
                (&column(rows, |row| row.cost), integers),
            ],
        )
        .map(drop)
    }
}

/// Sums, on a connection of their own.
///
/// # Errors
///
/// When the database does not answer.
pub(super) async fn usage(address: &Address, query: &UsageQuery) -> Result<Vec<UsageRow>> {
    let asking = async {
        let mut session = address.connect(QUERY_TIMEOUT).await?;
        let (sql, parameters) = query::statement(query, &DIALECT);
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            parameters.iter().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT)).collect();
        session
            .drive(async |client: &mut Client| {
                let rows = client.query_typed(&sql, &parameters).await?;
                rows.iter().map(|row| read(row, query.group_by.len())).collect()
            })
            .await
    };
    within(QUERY_TIMEOUT, asking).await.map_err(|Trouble { why }| {
        let message = format!("the ledger's database {} does not answer: {why}", address.shown());
        Error::new(Kind::Unavailable, Origin::Gateway, message)
    })
}

fn read(row: &tokio_postgres::Row, groups: usize) -> Result<UsageRow, tokio_postgres::Error> {
    let of = (0..groups).map(|index| row.try_get(index)).collect::<Result<_, _>>()?;
    let mut numbers = [0; query::NUMBERS];
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = row.try_get(groups + index)?;
    }
    Ok(query::row(of, numbers))
}

impl Trouble {
    fn of(cause: tokio_postgres::Error) -> Self {
        Self { why: explain(&cause) }
    }
}

/// The error and its causes on one line; what the database said comes without the values it
/// said it of.
fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(below) = cause {
        text = format!("{text}: {below}");
        cause = below.source();
    }
    text
}
