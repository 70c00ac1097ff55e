//! The tables of keys, step by step.

use crate::schema::Schema;
use rusqlite::Connection;

/// "TGAT" in the header.
pub(super) const SCHEMA: Schema = Schema { application_id: 0x5447_4154, steps: &STEPS };

const STEPS: [&str; 2] = [
    "
    CREATE TABLE keys (
        id TEXT PRIMARY KEY NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32), -- SHA-256 of the whole key
        name TEXT NOT NULL,
        team TEXT,
        models TEXT,                     -- JSON list of names; NULL: every model
        has_limits INTEGER NOT NULL,     -- 0: the configuration's default limits
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        concurrency INTEGER,
        created_at INTEGER NOT NULL,     -- Unix seconds, as the next two
        expires_at INTEGER,
        revoked_at INTEGER
    ) STRICT;
",
    // Money is in picodollars. Whoever writes a key, by whatever means, moves the version.
    "
    ALTER TABLE keys ADD COLUMN cost_per_minute INTEGER;
    ALTER TABLE keys ADD COLUMN budget_day INTEGER;
    ALTER TABLE keys ADD COLUMN budget_month INTEGER;
    ALTER TABLE keys ADD COLUMN budget_total INTEGER;
    ALTER TABLE keys ADD COLUMN budget_hard INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE keys ADD COLUMN former_hash BLOB CHECK (length(former_hash) = 32);
    ALTER TABLE keys ADD COLUMN former_until INTEGER;
    CREATE TABLE keys_version (version INTEGER NOT NULL) STRICT;
    INSERT INTO keys_version VALUES (1);
    CREATE TRIGGER key_inserted AFTER INSERT ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
    CREATE TRIGGER key_updated AFTER UPDATE ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
    CREATE TRIGGER key_deleted AFTER DELETE ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
",
];

/// A number that moves with every change of a key.
pub(super) fn keys_version(connection: &Connection) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached("SELECT version FROM keys_version")?;
    select.query_row([], |row| row.get(0))
}
