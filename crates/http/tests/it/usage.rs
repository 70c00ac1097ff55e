//! `GET /admin/usage` over a ledger that says what it was asked.

use crate::{
    admin::{TOKEN, is_problem},
    stub::{Said, Stub, read_all},
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tidegate_core::{
    BoxFuture, Entry, Error, Group, Kind, Ledger, Money, Origin, Result, Secret, UsageQuery,
    UsageRow,
};
use tidegate_http::serve_admin;
use tokio::{io::AsyncWriteExt as _, net::TcpListener, net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;

const HOST: &str = "Host: localhost:8081\r\n";

/// A ledger of one row, unless its database is away.
#[derive(Default)]
struct Books {
    asked: Mutex<Vec<UsageQuery>>,
    away: bool,
}

impl Ledger for Books {
    fn write(&self, _: Entry) {
        unreachable!("the admin port writes nothing")
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        unreachable!("nor does it wait for writing")
    }

    fn usage<'a>(&'a self, query: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>> {
        self.asked.lock().unwrap().push(query.clone());
        let row = UsageRow {
            of: query.group_by.iter().map(|group| format!("a {}", group.name())).collect(),
            attempts: 3,
            cost: Money::DOLLAR,
            ..UsageRow::default()
        };
        let answer = match self.away {
            true => Err(Error::new(Kind::Unavailable, Origin::Gateway, "the database is away")),
            false => Ok(vec![row]),
        };
        Box::pin(async move { answer })
    }
}

async fn start(ledger: Option<Arc<dyn Ledger>>, token: Option<&str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = token.map(|token| watch::channel(Secret::new(token.to_owned())).1);
    let admin = tidegate_http::Admin { answer: Stub::fine(), keys: None, ledger, token };
    tokio::spawn(serve_admin(listener, admin, CancellationToken::new()));
    address
}

async fn ask(address: SocketAddr, path: &str, headers: &str) -> Said {
    send(address, "GET", path, headers).await
}

async fn send(address: SocketAddr, method: &str, path: &str, headers: &str) -> Said {
    let mut io = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    Said::parse(&read_all(&mut io).await)
}

#[tokio::test]
async fn sums_are_given_in_the_form_that_was_asked_for() {
    let books = Arc::new(Books::default());
    let address = start(Some(books.clone()), None).await;
    let path = "/admin/usage?group_by=team,model&from=2026-11-01&team=a%20b";
    let said = ask(address, path, HOST).await;
    assert_eq!((said.status, said.header("content-type")), (200, Some("application/json")));
    assert_eq!(said.header("cache-control"), Some("no-store"));
    let row = &said.json()["data"][0];
    assert_eq!((&row["team"], &row["attempts"]), (&"a team".into(), &3.into()));
    assert_eq!(
        (&row["cost_usd"], &row["cost_picodollars"]),
        (&1.0.into(), &1_000_000_000_000u64.into())
    );
    let expected = UsageQuery {
        from: Some(1_793_491_200),
        team: Some("a b".into()),
        group_by: vec![Group::Team, Group::Model],
        limit: 10_000,
        ..UsageQuery::default()
    };
    assert_eq!(*books.asked.lock().unwrap(), [expected]);

    let said = ask(address, "/admin/usage?format=csv", HOST).await;
    assert_eq!(said.header("content-type"), Some("text/csv; charset=utf-8"));
    assert!(
        said.body.starts_with("attempts,calls,") && said.body.ends_with(",1.00\r\n"),
        "{said:?}"
    );
    // Its bytes are no text.
    let said = send(address, "HEAD", "/admin/usage?format=parquet", HOST).await;
    assert_eq!(said.header("content-type"), Some("application/vnd.apache.parquet"));
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem() {
    let address = start(Some(Arc::new(Books::default())), None).await;
    is_problem(&ask(address, "/admin/usage?group_by=x", HOST).await, 400, "invalid_request_error");
    let away = Books { away: true, ..Books::default() };
    let address = start(Some(Arc::new(away)), None).await;
    is_problem(&ask(address, "/admin/usage", HOST).await, 503, "no_upstream_available");
    let address = start(None, None).await;
    is_problem(&ask(address, "/admin/usage", HOST).await, 404, "not_found");
    let address = start(Some(Arc::new(Books::default())), Some(TOKEN)).await;
    is_problem(&ask(address, "/admin/usage", HOST).await, 401, "invalid_admin_token");
}
