//! What a database does for the ledger; it is called from the ledger's own thread and may block.

use super::record::Row;

/// Keeps rows.
pub(super) trait Database: Send {
    /// Stores `rows` of `writer` for good, all or none; those it has already change nothing.
    ///
    /// # Errors
    ///
    /// When it cannot say that they are stored. They may be.
    fn insert(&mut self, writer: i64, rows: &[Row<'_>]) -> Result<(), Trouble>;

    /// Deletes at most `most` rows sent before `before`, in microseconds since 1970, and says how
    /// many.
    ///
    /// # Errors
    ///
    /// When it did not, or cannot say.
    fn forget(&mut self, before: i64, most: u32) -> Result<u64, Trouble>;
}

/// Why it did not work, in words for the log. No secret is in it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) why: String,
}
