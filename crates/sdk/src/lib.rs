//! The assembly: engine, upstreams and store wired into one client.
//!
//! The gateway is this crate with listeners, the batch runner is this crate with files: all use
//! one assembly, so they cannot drift.
//!
//! ```no_run
//! use tidegate_sdk::{Client, Operation};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().openai("http://10.0.0.5:8000/v1", None).build()?;
//! let body = r#"{"model":"qwen3-8b","messages":[{"role":"user","content":"hello"}]}"#;
//! let reply = client.call(Operation::ChatCompletions, body).await?;
//! println!("{} by {}", reply.status, reply.served.upstream);
//! # Ok(()) }
//! ```

pub mod blocking;
mod builder;
mod client;
mod settings;
#[cfg(feature = "tokens-exact")]
mod tokenizer;

pub use builder::{BuildError, Builder, Simulator};
pub use client::Client;
pub use settings::{
    LimitSettings, LimitsSettings, MirrorSettings, ModelSettings, OauthSettings, Protocol,
    Settings, TargetSettings, TeamSettings, UpstreamSettings,
};
pub use tidegate_core::{Answer, Error, Operation, Reply, Result};
