//! The provider that speaks OpenAI's dialect: vLLM, SGLang, TGI, most hosted models, the
//! simulator.

use crate::{
    body::Answer,
    compress::{Compression, Packed},
    connect::Dialer,
    credential::{ClientCredentials, Token, Tokens},
    events::Asked,
    options::Options,
    pool::{Patience, Pool},
    reply,
    request::{Form, Template, parse_base},
    sent::Sent,
    stream_usage::{Ask, Asking, is_refused},
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
    asking: Asking,
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

    /// Sends `key` with every request from the next one on; connections stay as they are.
    ///
    /// Where the options set the header `authorization` themselves, that stays.
    ///
    /// # Errors
    ///
    /// [`tidegate_core::Kind::InvalidRequest`] when no header may carry it; the one before stays.
    pub fn replace_key(&self, key: &Secret<String>) -> Result<()> {
        self.template.replace_key(&self.name, key)
    }

    /// Asks the token endpoint with `secret` from the next request to it on. A token that is
    /// valid stays in use.
    pub fn replace_client_secret(&self, secret: Secret<String>) {
        if let Some(tokens) = &self.tokens {
            tokens.replace_secret(secret);
        }
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
        Self {
            name,
            pool: Pool::new(dialer, options),
            template,
            tokens: None,
            compression: Compression::new(options.compress_requests),
            asking: Asking::new(options.stream_usage),
            max_answer_bytes,
        }
    }

    async fn attempt(&self, attempt: Attempt<'_>) -> Result<Reply> {
        let ask = self.asking.of(attempt.call);
        match (self.ask(&attempt, ask).await, ask) {
            (Err(error), Some(refused)) if is_refused(&error) => {
                // Boxed, so that the calls that are not refused do not carry its state.
                Box::pin(self.ask_less(&attempt, refused)).await
            }
            (reply, _) => reply,
        }
    }

    /// Sends it with less asked for than was refused, until the upstream takes it: nothing was
    /// done with it before.
    async fn ask_less(&self, attempt: &Attempt<'_>, refused: Ask) -> Result<Reply> {
        let mut ask = refused.less();
        loop {
            match (self.ask(attempt, ask).await, ask) {
                (Err(error), Some(refused)) if is_refused(&error) => ask = refused.less(),
                (reply, _) => {
                    if reply.is_ok() {
                        self.asking.settle_for(ask);
                    }
                    return reply;
                }
            }
        }
    }

    /// Sends it, asking for its stream's usage or not, and reads the answer.
    async fn ask(&self, attempt: &Attempt<'_>, ask: Option<Ask>) -> Result<Reply> {
        let mut sent = Sent { headers: self.template.headers(), token: None };
        let answer = match self.compression.pack(attempt, ask).await {
            None => self.exchange(attempt, Form::Plain(ask), &mut sent).await?,
            // Boxed, so that the calls that are not compressed do not carry its state.
            Some(packed) => {
                Box::pin(self.exchange_packed(attempt, &packed, ask, &mut sent)).await?
            }
        };
        self.compression.learn(&answer.headers);
        let asked = if ask.is_some() { Asked::ByUs } else { Asked::AsSent };
        reply::read(answer, attempt.call, asked, self.max_answer_bytes, &sent).await
    }

    /// Sends the body compressed, and plain when it is refused for that: nothing was done with it.
    async fn exchange_packed(
        &self,
        attempt: &Attempt<'_>,
        packed: &Packed,
        ask: Option<Ask>,
        sent: &mut Sent,
    ) -> Result<Answer> {
        let answer = self.exchange(attempt, Form::Packed(packed), sent).await?;
        if answer.status != StatusCode::UNSUPPORTED_MEDIA_TYPE {
            return Ok(answer);
        }
        self.compression.learn(&answer.headers);
        drop(answer);
        let answer = self.exchange(attempt, Form::Plain(ask), sent).await?;
        if answer.status != StatusCode::UNSUPPORTED_MEDIA_TYPE {
            self.compression.refuse(packed.coding);
        }
        Ok(answer)
    }

    /// Sends it with the headers of `sent`, and notes there which token went with them: while it is
    /// under way both may be replaced.
    async fn exchange(
        &self,
        attempt: &Attempt<'_>,
        form: Form<'_>,
        sent: &mut Sent,
    ) -> Result<Answer> {
        let patience = Patience {
            connect: attempt.connect_timeout,
            deadline: Instant::from_std(attempt.deadline),
        };
        let Some(tokens) = &self.tokens else {
            let make = |protocol| self.template.request(attempt, form, sent, protocol);
            return self.pool.send(patience, attempt.written, make).await;
        };
        // Boxed, so that the calls that need no token do not carry its state.
        Box::pin(self.exchange_with(tokens, attempt, form, patience, sent)).await
    }

    /// Sends it with a token, and with another when the first is refused: nothing was done then.
    async fn exchange_with(
        &self,
        tokens: &Tokens,
        attempt: &Attempt<'_>,
        form: Form<'_>,
        patience: Patience,
        sent: &mut Sent,
    ) -> Result<Answer> {
        let mut send = async |token: &Arc<Token>| {
            sent.token = Some(Arc::clone(token));
            let make = |protocol| self.template.request(attempt, form, sent, protocol);
            self.pool.send(patience, attempt.written, make).await
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
