//! Wrong keys: told to wait, and nobody else is.

use crate::{
    admin::{Admin, TOKEN, is_problem},
    oauth::Issuer,
    stub::{KEY, Said, Server, Stub, read_all},
};
use tidegate_http::Options;
use tokio::io::AsyncWriteExt as _;

/// One request for the models with these headers, on a connection of its own.
async fn ask(server: &Server, headers: &str) -> Said {
    let mut io = server.connect().await;
    let request =
        format!("GET /v1/models HTTP/1.1\r\nHost: gate\r\n{headers}Connection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    Said::parse(&read_all(&mut io).await)
}

fn key(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

#[tokio::test]
async fn wrong_keys_are_slowed_and_valid_ones_pass() {
    let stub = Stub::fine();
    let server = Server::start(&stub, Options::default()).await;
    for _ in 0..10 {
        assert_eq!(ask(&server, &key("tg-wrong")).await.status, 401);
    }
    let said = ask(&server, &key("tg-wrong")).await;
    assert_eq!((said.status, said.code()), (429, "rate_limit_exceeded".to_owned()));
    let wait: u64 = said.header("retry-after").unwrap().parse().unwrap();
    assert!((25..=30).contains(&wait), "{wait}");
    assert!(said.header("retry-after-ms").is_some());
    assert_eq!(said.header("x-should-retry"), Some("false"), "the same key stays wrong");
    assert_eq!(said.header("connection"), Some("close"));
    assert_eq!(stub.refused.lock().unwrap().last().unwrap().status, 429, "and it is told so");

    assert_eq!(ask(&server, &key(KEY)).await.status, 200, "who has a key is let in all the time");
    assert_eq!(ask(&server, "").await.status, 401, "who sends none guesses nothing");
    assert_eq!(ask(&server, &key("a.past.token")).await.status, 401, "and renews what was good");
    server.stop().await;
}

#[tokio::test]
async fn of_two_keys_in_one_header_the_first_was_taken() {
    let server = Server::start(&Stub::fine(), Options::default()).await;
    for (one, other) in [(KEY, "tg-wrong"), ("tg-wrong", KEY), (KEY, KEY)] {
        for name in ["X-Api-Key: ", "Api-Key: ", "Authorization: Bearer "] {
            let said = ask(&server, &format!("{name}{one}\r\n{name}{other}\r\n")).await;
            assert_eq!((said.status, said.code()), (400, "invalid_request_error".to_owned()));
            assert!(said.body.contains("more than once"), "{}", said.body);
        }
    }
    let both = format!("{}X-Api-Key: tg-wrong\r\n", key(KEY));
    assert_eq!(ask(&server, &both).await.status, 200, "the first there is");
    server.stop().await;
}

#[tokio::test]
async fn the_bound_can_be_taken_away() {
    let options = Options { max_wrong_keys: 0, ..Options::default() };
    let server = Server::start(&Stub::fine(), options).await;
    for _ in 0..50 {
        assert_eq!(ask(&server, &key("tg-wrong")).await.status, 401);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_showed_no_secret_was_told_that_it_is_wrong() {
    let server = Server::start(&Stub::issuing(Issuer), Options::default()).await;
    let ask = async |form: &str| {
        let mut io = server.connect().await;
        let request = format!(
            "POST /oauth/token HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
            form.len()
        );
        io.write_all(request.as_bytes()).await.unwrap();
        Said::parse(&read_all(&mut io).await)
    };
    for form in ["grant_type=client_credentials", "grant_type=client_credentials&client_id=good"] {
        for _ in 0..12 {
            let said = ask(form).await;
            assert_eq!(said.status, 401);
            assert!(said.body.contains("invalid_client"), "{}", said.body);
            assert!(said.header("www-authenticate").is_some());
        }
    }
    let guess = "grant_type=client_credentials&client_id=good&client_secret=guess";
    for _ in 0..10 {
        assert_eq!(ask(guess).await.status, 401);
    }
    assert_eq!(ask(guess).await.status, 429);
    server.stop().await;
}

#[tokio::test]
async fn what_a_proxy_says_of_addresses_is_not_believed() {
    let server = Server::start(&Stub::fine(), Options::default()).await;
    let mut statuses = Vec::new();
    for number in 0..12 {
        let headers = format!(
            "X-Forwarded-For: 10.0.0.{number}\r\nForwarded: for=10.0.0.{number}\r\n{}",
            key("tg-wrong")
        );
        statuses.push(ask(&server, &headers).await.status);
    }
    assert_eq!(statuses[10..], [429, 429]);
    server.stop().await;
}

#[tokio::test]
async fn wrong_admin_tokens_are_slowed_too() {
    let admin = Admin::start(&Stub::fine(), Some(TOKEN)).await;
    let wrong = "Host: gate\r\nAuthorization: Bearer guess\r\n";
    for _ in 0..10 {
        is_problem(&admin.ask("GET", "/admin/upstreams", wrong).await, 401, "invalid_admin_token");
    }
    let said = admin.ask("GET", "/admin/upstreams", wrong).await;
    is_problem(&said, 429, "rate_limit_exceeded");
    assert!(said.header("retry-after").is_some());
    let right = format!("Host: gate\r\nAuthorization: Bearer {TOKEN}\r\n");
    assert_eq!(admin.ask("GET", "/admin/upstreams", &right).await.status, 200);
    assert_eq!(admin.ask("GET", "/livez", "Host: gate\r\n").await.status, 200);
    admin.stop().await;
}
