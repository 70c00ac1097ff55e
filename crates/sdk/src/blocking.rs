//! The client for programs without an async runtime.

use crate::{Builder, Result};
use bytes::Bytes;
use tidegate_core::{Error, Kind, Operation, Origin};
use tokio::runtime::Runtime;

/// Calls models from plain threads. Any number of threads may share one.
///
/// Must not be used inside an async runtime: there is [`crate::Client`] for that.
pub struct Client {
    client: crate::Client,
    runtime: Runtime,
}

impl Client {
    /// A client made by `builder`, with a runtime of its own.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidRequest`] when the parts do not fit together, [`Kind::Internal`] when the
    /// system gives no threads.
    pub fn new(builder: Builder) -> Result<Self> {
        let internal = |cause| {
            Error::new(Kind::Internal, Origin::Gateway, "no runtime could be started")
                .caused_by(cause)
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|cause: std::io::Error| internal(cause))?;
        let client = builder.build().map_err(|cause| {
            Error::new(Kind::InvalidRequest, Origin::Caller, cause.to_string()).caused_by(cause)
        })?;
        Ok(Self { client, runtime })
    }

    /// Calls `operation` and waits for the whole answer's bytes.
    ///
    /// # Errors
    ///
    /// As [`crate::Client::call`].
    pub fn call(&self, operation: Operation, body: impl Into<Bytes>) -> Result<Bytes> {
        let body = body.into();
        self.runtime.block_on(async {
            let reply = self.client.call(operation, body).await?;
            reply.body.collect(64 << 20).await
        })
    }

    /// Calls `operation` and reads the whole answer as JSON.
    ///
    /// # Errors
    ///
    /// As [`crate::Client::json`].
    pub fn json(
        &self,
        operation: Operation,
        body: &serde_json::Value,
    ) -> Result<serde_json::Value> {
        self.runtime.block_on(self.client.json(operation, body))
    }
}
