//! The tables of keys, step by step.

use crate::schema::Schema;
use rusqlite::Connection;

/// "TGAT" in the header.
pub(super) const SCHEMA: Schema = Schema { application_id: 0x5447_4154, steps: &STEPS };

const STEPS: [&str; 3] = [
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
    // Which keys changed since a version, so that nobody has to read them all. `gone` is the version
    // of the last change that no row tells of: one was deleted, or got another id.
    "
    ALTER TABLE keys ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE keys_version ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX keys_by_change ON keys (changed);
    DROP TRIGGER key_inserted;
    DROP TRIGGER key_updated;
    DROP TRIGGER key_deleted;
    CREATE TRIGGER key_inserted AFTER INSERT ON keys BEGIN
        UPDATE keys_version SET version = version + 1;
        UPDATE keys SET changed = (SELECT version FROM keys_version) WHERE rowid = NEW.rowid;
    END;
    CREATE TRIGGER key_updated
        AFTER UPDATE OF id, hash, former_hash, former_until, name, team, models, has_limits,
            requests_per_minute, tokens_per_minute, cost_per_minute, concurrency,
            budget_day, budget_month, budget_total, budget_hard,
            created_at, expires_at, revoked_at
        ON keys BEGIN
        UPDATE keys_version SET version = version + 1,
            gone = CASE WHEN OLD.id = NEW.id THEN gone ELSE version + 1 END;
        UPDATE keys SET changed = (SELECT version FROM keys_version) WHERE rowid = NEW.rowid;
    END;
    CREATE TRIGGER key_deleted AFTER DELETE ON keys BEGIN
        UPDATE keys_version SET version = version + 1, gone = version + 1;
    END;
",
];

/// No version is this one: whatever there is changed after it.
pub(super) const NEVER: i64 = -1;

/// Numbers that move with changes of keys.
pub(super) struct Versions {
    /// With every change.
    pub(super) version: i64,
    /// What the version was after the last change that no row tells of.
    pub(super) gone: i64,
}

pub(super) fn versions(connection: &Connection) -> rusqlite::Result<Versions> {
    let mut select = connection.prepare_cached("SELECT version, gone FROM keys_version")?;
    select.query_row([], |row| Ok(Versions { version: row.get(0)?, gone: row.get(1)? }))
}
