//! A stream of events that a script has a provider give.

use super::{Open, USAGE, unary};
use crate::step::{Ending, Step};
use bytes::Bytes;
use futures_util::stream;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Body, ContentType, Meter, Reply, Result, Usage};

/// A stream being played.
#[derive(Clone)]
pub(super) struct Played {
    pub(super) model: Arc<str>,
    pub(super) step: Step,
    pub(super) meter: Arc<Meter>,
    pub(super) chunks: u32,
    pub(super) every: Duration,
    pub(super) ending: Ending,
}

impl Played {
    /// The reply, once its first content has come: a provider returns a stream no sooner.
    pub(super) async fn start(self, open: Open) -> Reply {
        if self.chunks > 0 {
            tokio::time::sleep(self.every).await;
        } else if self.ending == Ending::Stall {
            std::future::pending::<()>().await;
        }
        let meter = self.meter.clone();
        let limits = self.step.limits;
        let body = stream::unfold((Some(open), 0), move |(open, number)| {
            let played = self.clone();
            async move { played.next(open?, number).await }
        });
        Reply {
            content_type: ContentType::EventStream,
            body: Body::stream(body),
            usage: None,
            meter: Some(meter),
            limits,
            ..unary(&Step::default(), Bytes::new())
        }
    }

    async fn next(self, open: Open, number: u32) -> Option<(Result<Bytes>, (Option<Open>, u32))> {
        if number < self.chunks {
            if number > 0 {
                tokio::time::sleep(self.every).await;
            }
            return Some((Ok(self.event(number)), (Some(open), number + 1)));
        }
        match self.ending {
            Ending::Clean => {
                open.close_saying("end");
                None
            }
            Ending::Stall => std::future::pending().await,
            Ending::Fail(failure) => {
                open.close_saying("fail");
                Some((Err(self.step.error(failure)), (None, number)))
            }
        }
    }

    /// Event `number`; the last one of a clean stream carries the usage and `[DONE]`.
    fn event(&self, number: u32) -> Bytes {
        self.meter.add_chunks(1);
        let (mut tail, mut done) = (String::new(), "");
        if self.ending == Ending::Clean && number + 1 == self.chunks {
            let usage = self.step.usage.unwrap_or(USAGE);
            self.meter.set(usage);
            let Usage { input, output, .. } = usage;
            tail = format!(
                r#","usage":{{"prompt_tokens":{input},"completion_tokens":{output},"total_tokens":{}}}"#,
                usage.total()
            );
            done = "data: [DONE]\n\n";
        }
        let model = &self.model;
        let choice = format!(r#"{{"index":0,"delta":{{"content":"{number}"}}}}"#);
        format!(
            "data: {{\"id\":\"scripted\",\"model\":\"{model}\",\"choices\":[{choice}]{tail}}}\n\n{done}"
        )
        .into()
    }
}
