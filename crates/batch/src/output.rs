//! From journaled rows to the files a user reads.
//!
//! The journal keeps every row as its finished JSON line. The other formats are made from that
//! line when the output is written, so a job answered once can be written again in another
//! format without a call.

mod assemble;
mod csv;
mod openai;
mod row;
mod stream;

pub(crate) use assemble::{Assembled, Selection, assemble};
pub(crate) use row::{Answered, Failed, Outcome, Row, encode, read};
pub(crate) use stream::Stream;
