//! Who may do what: every route of both ports, by every method, as everybody.
//!
//! A route that is in no table below fails the test: requests find their way by the very tables
//! that the tables below are held against.

mod asking;
mod others;

use crate::web::{Gateway, json, send};
use asking::{ask, credentials};
use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr};

/// The last is nobody's. (`CONNECT` has no path, and is in `others`.)
const METHODS: [&str; 9] =
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"];

/// `good` may use both models, `other` is another team's, `scoped` may use `sim-other` alone,
/// `token` was bought with `good`, `admin` is the operators' token.
const IDENTITIES: [&str; 9] =
    ["none", "bad", "good", "other", "expired", "revoked", "scoped", "token", "admin"];

/// The callers' port. Methods that are in no row of a path are 405 for everybody.
const CALLERS: &str = "
path                                     methods   none bad good other expired revoked scoped token admin
/v1/chat/completions                     POST      401 401 200 200 401 401 403 200 401
/v1/completions                          POST      401 401 200 200 401 401 403 200 401
/v1/embeddings                           POST      401 401 200 200 401 401 403 200 401
/v1/responses                            POST      401 401 200 200 401 401 403 200 401
/v1/models                               GET,HEAD  401 401 200 200 401 401 200 200 401
/v1/models/sim-small                     GET,HEAD  401 401 200 200 401 401 404 200 401
/v1/models/sim-other                     GET,HEAD  401 401 200 200 401 401 200 200 401
/v1/models/sim-none                      GET,HEAD  401 401 404 404 401 401 404 404 401
/oauth/token                             POST      401 401 401 401 401 401 401 401 401
/.well-known/jwks.json                   GET,HEAD  200 200 200 200 200 200 200 200 200
/.well-known/oauth-authorization-server  GET,HEAD  200 200 200 200 200 200 200 200 200
/livez                                   GET,HEAD  200 200 200 200 200 200 200 200 200
/readyz                                  GET,HEAD  200 200 200 200 200 200 200 200 200
/v1/models/sim%2Dsmall                   GET,HEAD  401 401 200 200 401 401 404 200 401
/v1/models/                              *         404 404 404 404 404 404 404 404 404
/v1/models/%zz                           GET,HEAD  404 404 404 404 404 404 404 404 404
/v1/chat/completions/                    *         404 404 404 404 404 404 404 404 404
/V1/models                               *         404 404 404 404 404 404 404 404 404
/livez/                                  *         404 404 404 404 404 404 404 404 404
/v1//models                              *         400 400 400 400 400 400 400 400 400
//v1/models                              *         400 400 400 400 400 400 400 400 400
/v1/./models                             *         400 400 400 400 400 400 400 400 400
/v1/../admin/keys                        *         400 400 400 400 400 400 400 400 400
/v1/%2e%2e/admin/keys                    *         400 400 400 400 400 400 400 400 400
/v1%2Fmodels                             *         400 400 400 400 400 400 400 400 400
/v1/models/%2e%2E/sim-small              *         400 400 400 400 400 400 400 400 400
/v1/models/sim-small%00                  *         400 400 400 400 400 400 400 400 400
/admin/keys                              *         404 404 404 404 404 404 404 404 404
/v1/nothing                              *         404 404 404 404 404 404 404 404 404
";

/// The operators' port: without the token not even whether there is such a path is told. `ID` is a
/// key's, `NO` nobody's, `AGAIN` that of a key which is rotated.
const OPERATORS: &str = "
path                      methods   none bad good other expired revoked scoped token admin
/livez                    GET,HEAD  200 200 200 200 200 200 200 200 200
/livez                    *         401 401 401 401 401 401 401 401 405
/readyz                   GET,HEAD  200 200 200 200 200 200 200 200 200
/readyz                   *         401 401 401 401 401 401 401 401 405
/admin/upstreams          GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/upstreams          *         401 401 401 401 401 401 401 401 405
/admin/mirrors            GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/mirrors            *         401 401 401 401 401 401 401 401 405
/admin/usage              GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/usage              *         401 401 401 401 401 401 401 401 405
/admin/keys               GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/keys               POST      401 401 401 401 401 401 401 401 201
/admin/keys               *         401 401 401 401 401 401 401 401 405
/admin/keys/ID            GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/keys/ID            PATCH     401 401 401 401 401 401 401 401 200
/admin/keys/ID            DELETE    401 401 401 401 401 401 401 401 200
/admin/keys/ID            *         401 401 401 401 401 401 401 401 405
/admin/keys/NO            GET,HEAD  401 401 401 401 401 401 401 401 404
/admin/keys/NO            PATCH     401 401 401 401 401 401 401 401 404
/admin/keys/NO            DELETE    401 401 401 401 401 401 401 401 404
/admin/keys/NO            *         401 401 401 401 401 401 401 401 405
/admin/keys/AGAIN/rotate  POST      401 401 401 401 401 401 401 401 200
/admin/keys/AGAIN/rotate  *         401 401 401 401 401 401 401 401 405
/admin/keys/NO/rotate     POST      401 401 401 401 401 401 401 401 404
/admin/keys/NO/rotate     *         401 401 401 401 401 401 401 401 405
/admin/keys/ID/           *         401 401 401 401 401 401 401 401 404
/admin/upstreams/         *         401 401 401 401 401 401 401 401 404
/Admin/upstreams          *         401 401 401 401 401 401 401 401 404
/                         *         401 401 401 401 401 401 401 401 404
/admin//upstreams         *         400 400 400 400 400 400 400 400 400
//admin/upstreams         *         400 400 400 400 400 400 400 400 400
/livez/../admin/keys      *         400 400 400 400 400 400 400 400 400
/livez/%2e%2e/admin/keys  *         400 400 400 400 400 400 400 400 400
/admin/keys%2FID          *         400 400 400 400 400 400 400 400 400
/admin/keys/              *         401 401 401 401 401 401 401 401 404
/admin/nothing            *         401 401 401 401 401 401 401 401 404
/v1/models                *         401 401 401 401 401 401 401 401 404
";

const CONFIG: &str = r#"
[server]
admin_token = "operators-token"
[server.limits]
max_wrong_keys = 0
[upstreams.sim]
protocol = "sim"
[models.sim-small]
targets = [{ upstream = "sim" }]
[models.sim-other]
targets = [{ upstream = "sim" }]
"#;

/// One row of a table.
struct Row<'a> {
    path: &'a str,
    methods: Vec<&'a str>,
    statuses: Vec<u16>,
}

/// The rows of a table, and a last one for the methods of each path that are in none.
fn rows(table: &str) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let lines = table.lines().filter(|line| !line.is_empty());
    for line in lines.skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path, methods, statuses @ ..] = &words[..] else { panic!("{line}") };
        assert_eq!(statuses.len(), IDENTITIES.len(), "{line}");
        let earlier = rows.iter().filter(|row| row.path == *path);
        let taken: BTreeSet<&str> = earlier.flat_map(|row| row.methods.clone()).collect();
        let methods = match *methods {
            "*" => METHODS.into_iter().filter(|method| !taken.contains(method)).collect(),
            some => some.split(',').collect(),
        };
        let statuses = statuses.iter().map(|status| status.parse().unwrap()).collect();
        rows.push(Row { path, methods, statuses });
    }
    let paths: BTreeSet<&str> = rows.iter().map(|row| row.path).collect();
    for path in paths {
        let said = rows.iter().filter(|row| row.path == path);
        let said: BTreeSet<&str> = said.flat_map(|row| row.methods.clone()).collect();
        let methods: Vec<_> = METHODS.into_iter().filter(|method| !said.contains(method)).collect();
        if !methods.is_empty() {
            rows.push(Row { path, methods, statuses: vec![405; IDENTITIES.len()] });
        }
    }
    rows
}

/// Asks everything the table has and says what is not as it says.
async fn check(
    to: SocketAddr,
    table: &str,
    credentials: &[Option<String>; 9],
    ids: &[(&str, &str)],
) -> String {
    let (mut wrong, mut number) = (String::new(), 0);
    let rows = rows(table);
    for row in &rows {
        let path = row
            .path
            .split('/')
            .map(|part| ids.iter().find(|(name, _)| *name == part).map_or(part, |(_, id)| *id));
        let path = path.collect::<Vec<_>>().join("/");
        let there = rows.iter().filter(|other| other.path == row.path);
        let takes: BTreeSet<&str> = there
            .filter(|row| !row.statuses.contains(&405))
            .flat_map(|row| row.methods.clone())
            .collect();
        for method in &row.methods {
            for (index, credential) in credentials.iter().enumerate() {
                number += 1;
                let asked = (*method, &*path);
                let answer = ask(to, number, asked, credential.as_deref()).await;
                let (who, expected) = (IDENTITIES[index], row.statuses[index]);
                let mut say =
                    |what: &str| writeln!(wrong, "{method} {} as {who}: {what}", row.path);
                if !cfg!(target_os = "linux") && (answer.status, expected) == (429, 401) {
                    continue;
                }
                if answer.status != expected {
                    say(&format!("{} and not {expected}: {}", answer.status, answer.body)).unwrap();
                }
                if answer.challenge != (answer.status == 401) {
                    say("WWW-Authenticate goes with 401").unwrap();
                }
                let allowed = answer.allow.as_deref();
                let allowed = allowed.map(|allow| allow.split(", ").collect::<BTreeSet<_>>());
                if allowed.as_ref() != (answer.status == 405).then_some(&takes) {
                    say(&format!("Allow {allowed:?}")).unwrap();
                }
                if (*method == "HEAD") != answer.body.is_empty() {
                    say(&format!("body {:?}", answer.body)).unwrap();
                }
            }
        }
    }
    wrong
}

#[tokio::test]
async fn everybody_may_do_on_every_route_what_the_table_says() {
    let gateway = Gateway::start(CONFIG).await;
    let credentials = credentials(&gateway).await;
    let wrong = check(gateway.address, CALLERS, &credentials, &[]).await;
    assert!(wrong.is_empty(), "the callers' port:\n{wrong}");

    let auth = [("authorization", "Bearer operators-token")];
    let mut made = Vec::new();
    for _ in 0..2 {
        let key = json(send(gateway.admin, "POST", "/admin/keys", &auth, "").await).await;
        made.push(key["id"].as_str().unwrap().to_owned());
    }
    let ids = [("ID", &*made[0]), ("AGAIN", &*made[1]), ("NO", "nobody000000")];
    let wrong = check(gateway.admin, OPERATORS, &credentials, &ids).await;
    assert!(wrong.is_empty(), "the operators' port:\n{wrong}");
}

/// Whether `path` of a table below is one of those that `route` stands for.
fn is_of(route: &str, path: &str) -> bool {
    let Some((before, rest)) = route.split_once('{') else { return route == path };
    let (name, after) = rest.split_once('}').unwrap();
    let middle = path.strip_prefix(before).and_then(|path| path.strip_suffix(after));
    middle.is_some_and(|its| !its.is_empty() && (name.starts_with('+') || !its.contains('/')))
}

#[test]
fn every_route_there_is_is_in_a_table() {
    let ports = [
        (CALLERS, tidegate_http::callers_routes()),
        (OPERATORS, tidegate_http::operators_routes()),
    ];
    for (table, routes) in ports {
        let rows = rows(table);
        // The methods that somebody gets another answer to than that there is no such thing.
        let taken = |path: &str| -> BTreeSet<&str> {
            let rows = rows.iter().filter(|row| row.path == path);
            let rows = rows.filter(|row| row.statuses.iter().all(|status| *status != 405));
            rows.flat_map(|row| row.methods.clone()).collect()
        };
        for route in &routes {
            let paths: BTreeSet<&str> =
                rows.iter().map(|row| row.path).filter(|path| is_of(route.path, path)).collect();
            let found = paths
                .iter()
                .map(|path| taken(path))
                .find(|taken| route.methods.split(", ").collect::<BTreeSet<_>>() == *taken);
            assert!(
                found.is_some(),
                "{} {} is in no table: add who may do what there",
                route.methods,
                route.path
            );
        }
        for row in rows.iter().filter(|row| row.statuses.iter().any(|status| *status < 400)) {
            let route = routes.iter().find(|route| is_of(route.path, row.path));
            let route = route.unwrap_or_else(|| panic!("{} is no route", row.path));
            let listed: BTreeSet<&str> = route.methods.split(", ").collect();
            assert!(row.methods.iter().all(|method| listed.contains(method)), "{}", row.path);
        }
    }
}
