//! Tokens for an upstream: one request at a time, early, and no longer than they are good.

use crate::support::{JSON, OK_BODY, Server, answer, call, options, send, server};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tidegate_core::{Error, Kind, Operation, Reply, Result, Retry};
use tidegate_upstream::{ClientAuth, ClientCredentials, Options, Upstream};
use tokio::sync::Semaphore;

/// A token endpoint that answers with one token after the other, and an upstream that takes some.
struct House {
    issued: Arc<AtomicUsize>,
    /// What the endpoint answers instead of a token.
    refuses: Arc<Mutex<Option<&'static str>>>,
    /// One permit per answer of the endpoint, where answers are held back.
    gate: Arc<Semaphore>,
    /// The numbers of the tokens the upstream takes; none takes all.
    takes: Arc<Mutex<Option<usize>>>,
    /// The tokens it saw.
    seen: Arc<Mutex<Vec<String>>>,
    forms: Arc<Mutex<Vec<String>>>,
    upstream: Arc<Upstream>,
    _servers: [Server; 2],
}

const FREELY: usize = Semaphore::MAX_PERMITS;

impl House {
    async fn new(permits: usize) -> Self {
        let issued = Arc::new(AtomicUsize::new(0));
        let refuses: Arc<Mutex<Option<&'static str>>> = Arc::default();
        let gate = Arc::new(Semaphore::new(permits));
        let forms: Arc<Mutex<Vec<String>>> = Arc::default();
        let endpoint = {
            let (issued, refuses, gate, forms) =
                (issued.clone(), refuses.clone(), gate.clone(), forms.clone());
            server(move |mut connection| {
                let (issued, refuses, gate, forms) =
                    (issued.clone(), refuses.clone(), gate.clone(), forms.clone());
                async move {
                    while let Some(request) = connection.request().await {
                        forms.lock().unwrap().push(request.text().to_owned());
                        let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire().await.unwrap().forget();
                        let refusal = *refuses.lock().unwrap();
                        connection
                            .send(match refusal {
                                Some(status) => {
                                    answer(status, JSON, r#"{"error":"invalid_client"}"#)
                                }
                                None => answer(
                                    "200 OK",
                                    JSON,
                                    format!(
                                        r#"{{"access_token":"t{number}","token_type":"Bearer","expires_in":100}}"#
                                    ),
                                ),
                            })
                            .await;
                    }
                }
            })
            .await
        };
        let takes: Arc<Mutex<Option<usize>>> = Arc::default();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let models = {
            let (takes, seen) = (takes.clone(), seen.clone());
            server(move |mut connection| {
                let (takes, seen) = (takes.clone(), seen.clone());
                async move {
                    while let Some(request) = connection.request().await {
                        let token = request.header("authorization").unwrap_or_default().to_owned();
                        let taken =
                            takes.lock().unwrap().is_none_or(|n| token == format!("bearer t{n}"));
                        seen.lock().unwrap().push(token);
                        let status = if taken { "200 OK" } else { "401 Unauthorized" };
                        connection.send(answer(status, JSON, OK_BODY)).await;
                    }
                }
            })
            .await
        };
        let credentials = ClientCredentials {
            token_url: format!("http://{}/token?tenant=1", endpoint.address),
            client_id: "us".into(),
            client_secret: "canary".to_owned().into(),
            scope: Some("models".into()),
            audience: None,
            auth: ClientAuth::Body,
        };
        let options = Options { max_connections: 50, ..options(models.address) };
        let upstream = Upstream::open("up".into(), options.clone(), None).unwrap();
        let upstream = Arc::new(upstream.with_tokens(credentials, &options).unwrap());
        let _servers = [endpoint, models];
        Self { issued, refuses, gate, takes, seen, forms, upstream, _servers }
    }

    async fn call(&self) -> Result<Reply> {
        send(&self.upstream, &call(Operation::ChatCompletions, false)).await
    }

    async fn refused(&self) -> Error {
        let error = self.call().await.unwrap_err();
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        error
    }

    /// Makes this many calls at once; how many were answered.
    async fn calls(&self, count: usize) -> usize {
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let upstream = self.upstream.clone();
                tokio::spawn(async move {
                    send(&upstream, &call(Operation::ChatCompletions, false)).await.is_ok()
                })
            })
            .collect();
        let mut good = 0;
        for call in calls {
            good += usize::from(call.await.unwrap());
        }
        good
    }

    fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }

    fn last_seen(&self) -> String {
        self.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Until the endpoint was asked so often.
    async fn asked(&self, times: usize) {
        while self.issued() < times {
            tokio::task::yield_now().await;
        }
    }
}

/// Lets the clock jump.
async fn pass(secs: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(secs)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_thousand_waiting_calls_cost_one_request() {
    let house = Arc::new(House::new(0).await);
    let calls = tokio::spawn({
        let house = house.clone();
        async move { house.calls(1000).await }
    });
    house.asked(1).await;
    house.gate.add_permits(1000);
    assert_eq!((calls.await.unwrap(), house.issued()), (1000, 1));
    assert!(house.seen.lock().unwrap().iter().all(|token| token == "bearer t1"));
    let form = house.forms.lock().unwrap()[0].clone();
    assert_eq!(
        form,
        "grant_type=client_credentials&client_id=us&client_secret=canary&scope=models"
    );
}

#[tokio::test]
async fn a_token_is_renewed_early_and_nobody_waits_for_it() {
    let house = House::new(1).await;
    house.call().await.unwrap();
    pass(70).await;
    house.call().await.unwrap();
    assert_eq!(house.issued(), 1);
    pass(16).await;
    // The endpoint is asked, and does not answer yet.
    assert_eq!(house.calls(100).await, 100);
    house.asked(2).await;
    assert_eq!((house.issued(), house.last_seen()), (2, "bearer t1".into()));
    house.gate.add_permits(1);
    while house.last_seen() != "bearer t2" {
        house.call().await.unwrap();
    }
    assert_eq!(house.issued(), 2);
}

#[tokio::test]
async fn a_401_forces_one_renewal_for_all() {
    let house = House::new(FREELY).await;
    house.call().await.unwrap();
    pass(6).await;
    *house.takes.lock().unwrap() = Some(2);
    assert_eq!((house.calls(200).await, house.issued()), (200, 2));
    // One that takes no token at all gets no new one per call.
    *house.takes.lock().unwrap() = Some(99);
    for _ in 0..20 {
        assert_eq!(house.refused().await.kind(), Kind::UpstreamCredential);
    }
    assert_eq!(house.issued(), 2);
    pass(6).await;
    assert_eq!(house.refused().await.kind(), Kind::UpstreamCredential);
    assert_eq!(house.issued(), 3);
}

#[tokio::test]
async fn a_dead_endpoint_costs_nothing_while_the_token_is_good() {
    let house = House::new(FREELY).await;
    house.call().await.unwrap();
    *house.refuses.lock().unwrap() = Some("503 Unavailable");
    pass(90).await;
    assert_eq!(house.calls(100).await, 100);
    house.asked(2).await;
    pass(10).await;
    let error = house.refused().await;
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Unsent));
    let said = error.message();
    assert!(said.contains("no token for the upstream up") && said.contains("503"), "{said}");
    let asked = house.issued();
    for _ in 0..20 {
        assert!(house.refused().await.retry_after().is_some());
    }
    assert_eq!(house.issued(), asked, "not asked again within the pause");
    *house.refuses.lock().unwrap() = None;
    pass(40).await;
    house.call().await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_is_our_credential_refused() {
    let house = House::new(FREELY).await;
    *house.refuses.lock().unwrap() = Some("401 Unauthorized");
    for _ in 0..20 {
        let error = house.refused().await;
        assert_eq!((error.kind(), error.retry()), (Kind::UpstreamCredential, Retry::Never));
        assert!(error.message().contains("401 (invalid_client)"), "{error}");
    }
    assert_eq!(house.issued(), 1);
    assert!(house.seen.lock().unwrap().is_empty(), "nothing went to the upstream");
}

#[tokio::test]
async fn a_caller_who_hangs_up_takes_no_token_along() {
    let house = House::new(0).await;
    let waiting = tokio::spawn({
        let upstream = house.upstream.clone();
        async move { send(&upstream, &call(Operation::ChatCompletions, false)).await.is_ok() }
    });
    house.asked(1).await;
    waiting.abort();
    house.gate.add_permits(1);
    house.call().await.unwrap();
    assert_eq!(house.issued(), 1);
}
