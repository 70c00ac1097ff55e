//! The provider that speaks OpenAI's dialect: vLLM, SGLang, TGI, most hosted models, the
//! simulator.

use crate::{
    body::Answer,
    compress::{Compression, Packed},
    connect::Dialer,
    credential::{ClientCredentials, Token, Tokens},
    options::Options,
    pool::{Patience, Pool},
    reply,
    request::{Template, parse_base},
};
use http::StatusCode;
use std::{fmt, sync::Arc};
use tidegate_core::{Attempt, BoxFuture, Provider, Reply, Result, Secret};
use tokio::{io::DuplexStream, time::Instant};

/// One upstream: its address, our key there, and the connections to it.
///
/// # Cost
///
/// A call on an open connection costs one clone of a header map, two or three headers, and the
/// copy of a body under 64 KiB whose model name changes; longer bodies are not copied, unless they
/// are to be compressed.
pub struct Upstream {
    name: Arc<str>,
    pool: Pool,
    template: Template,
    /// Our tokens there, where it takes no key.
    tokens: Option<Tokens>,
    compression: Compression,
    max_answer_bytes: usize,
}

impl Upstream {
    /// Prepares an upstream; the first call opens the first connection.
    ///
    /// # Errors
    ///
    /// [`tidegate_core::Kind::InvalidRequest`] whose `param` names the option that cannot work.
    pub fn open(
        name: Arc<str>,
        options: Options,
        credential: Option<Secret<String>>,
    ) -> Result<Self> {
        let options = options.checked(&name)?;
        let base = parse_base(&name, &options.base_url)?;
        let dialer = Dialer::new(&name, &base, &options, None)?;
        let template = Template::new(&name, &base, &options, credential.as_ref())?;
        Ok(Self::assemble(name, &options, dialer, template))
    }

    /// Sends a token of `credentials` with every request, in place of a key. The token endpoint is
    /// reached with the certificate authorities of `options`; the first call asks it.
    ///
    /// # Errors
    ///
    /// [`tidegate_core::Kind::InvalidRequest`] when the endpoint is no URL.
    pub fn with_tokens(
        mut self,
        credentials: ClientCredentials,
        options: &Options,
    ) -> Result<Self> {
        self.tokens = Some(Tokens::new(&self.name, credentials, options)?);
        Ok(self)
    }

    /// Prepares an upstream inside this process: `connect` makes a pipe to it.
    ///
    /// No socket is involved, so it works under a paused clock. Without a base URL its paths
    /// begin with `/v1`.
    ///
    /// # Errors
    ///
    /// As [`Upstream::open`].
    pub fn local(
        name: Arc<str>,
        mut options: Options,
        connect: Arc<dyn Fn() -> DuplexStream + Send + Sync>,
    ) -> Result<Self> {
        if options.base_url.is_empty() {
            options.base_url = "http://localhost/v1".into();
        }
        let options = options.checked(&name)?;
        let base = parse_base(&name, &options.base_url)?;
        let dialer = Dialer::new(&name, &base, &options, Some(connect))?;
        let template = Template::new(&name, &base, &options, None)?;
        Ok(Self::assemble(name, &options, dialer, template))
    }

    fn assemble(name: Arc<str>, options: &Options, dialer: Dialer, template: Template) -> Self {
        let max_answer_bytes = options.max_answer_bytes;
        let compression = Compression::new(options.compress_requests);
        Self { name, pool: Pool::new(dialer, options), template, tokens: None, compression, max_answer_bytes }
    }

    async fn attempt(&self, attempt: Attempt<'_>) -> Result<Reply> {
        let answer = match self.compression.pack(&attempt).await {
            None => self.exchange(&attempt, None).await?,
            // Boxed, so that the calls that are not compressed do not carry its state.
            Some(packed) => Box::pin(self.exchange_packed(&attempt, &packed)).await?,
        };
        self.compression.learn(&answer.headers);
        reply::read(answer, attempt.call, self.max_answer_bytes).await
    }

    /// Sends the body compressed, and plain when it is refused for that: nothing was done with it.
    async fn exchange_packed(&self, attempt: &Attempt<'_>, packed: &Packed) -> Result<Answer> {
        let answer = self.exchange(attempt, Some(packed)).await?;
        if answer.status != StatusCode::UNSUPPORTED_MEDIA_TYPE {
            return Ok(answer);
        }
        self.compression.learn(&answer.headers);
        drop(answer);
        let answer = self.exchange(attempt, None).await?;
        if answer.status != StatusCode::UNSUPPORTED_MEDIA_TYPE {
            self.compression.refuse(packed.coding);
        }
        Ok(answer)
    }

    async fn exchange(&self, attempt: &Attempt<'_>, packed: Option<&Packed>) -> Result<Answer> {
        let patience = Patience {
            connect: attempt.connect_timeout,
            deadline: Instant::from_std(attempt.deadline),
        };
        let Some(tokens) = &self.tokens else {
            let make = |protocol| self.template.request(attempt, packed, None, protocol);
            return self.pool.send(patience, make).await;
        };
        // Boxed, so that the calls that need no token do not carry its state.
        Box::pin(self.exchange_with(tokens, attempt, packed, patience)).await
    }

    /// Sends it with a token, and with another when the first is refused: nothing was done then.
    async fn exchange_with(
        &self,
        tokens: &Tokens,
        attempt: &Attempt<'_>,
        packed: Option<&Packed>,
        patience: Patience,
    ) -> Result<Answer> {
        let send = async |token: &Token| {
            let header = Some(&token.header);
            let make = |protocol| self.template.request(attempt, packed, header, protocol);
            self.pool.send(patience, make).await
        };
        let token = tokens.token(patience.deadline).await?;
        let answer = send(&token).await?;
        if answer.status != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        match tokens.instead_of(&token, patience.deadline).await {
            Some(other) => {
                drop(answer);
                send(&other).await
            }
            None => Ok(answer),
        }
    }
}

impl Provider for Upstream {
    fn send<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(self.attempt(attempt))
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).finish_non_exhaustive()
    }
}
