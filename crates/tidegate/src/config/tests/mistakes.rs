//! What is wrong is said, all of it, each with its place and what to do.

use super::Case;
use std::fs;

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        (
            "[server]\nlisen = 'x'",
            &["tidegate.toml:2:1: unknown key `lisen` in server; did you mean `listen`?"][..],
        ),
        (
            "[server]\nlisen = 'x'\n[models.m]\ntargets = [{ upstream = 'a' }]",
            &[
                "tidegate.toml:2:1: unknown key `lisen` in server; did you mean `listen`?",
                "tidegate.toml:4:25: models.m.targets[0].upstream: there is no upstream `a`; there are no upstreams",
            ],
        ),
        ("[sever]\n", &["tidegate.toml:1:2: unknown key `sever`; did you mean `server`?"]),
        (
            "server.listen = 'here'",
            &[
                "tidegate.toml:1:17: server.listen: `here` is not an address to listen on: write IP and port, like \"127.0.0.1:8080\"",
            ],
        ),
        (
            "server.limits.header_timeout = '10'",
            &[
                "tidegate.toml:1:32: server.limits.header_timeout: `10` is not a duration: write it like \"250ms\", \"30s\" or \"10m\"",
            ],
        ),
        (
            "server.limits.max_streams = 0",
            &[
                "tidegate.toml:1:29: server.limits.max_streams: is zero: nothing could be served; give it a value above zero",
            ],
        ),
        (
            "idempotency.ttl = '0s'",
            &[
                "tidegate.toml:1:19: idempotency.ttl: zero would keep nothing: give it a value above zero, or set enabled = false",
            ],
        ),
        (
            "log.access = 'of'",
            &[
                "tidegate.toml:1:14: log.access: `of` is neither \"stderr\" nor \"off\" nor a path: write a file of this directory as \"./of\"",
            ],
        ),
        (
            "[upstreams.a]\nprotocol = 'opanai'\nbase_url = 'http://x/v1'",
            &[
                "tidegate.toml:2:12: upstreams.a.protocol: `opanai` is not a choice here; did you mean `openai`?",
            ],
        ),
        (
            "[limits.default]\nrequests_per_minute = -1",
            &[
                "tidegate.toml:2:23: limits.default.requests_per_minute: expected a whole number from 0 to 4294967295, found the number -1",
            ],
        ),
        (
            "[limits.team]\n",
            &["tidegate.toml:1:9: unknown key `team` in limits; did you mean `teams`?"],
        ),
        (
            "[limits.teams.search]\nconcurrency = 0\ncost_per_minute = -1\nalgorithm = 'fixed_window'\nburst = '5s'",
            &[
                "tidegate.toml:2:15: limits.teams.search.concurrency: 0 would refuse every call; leave it out for no limit",
                "tidegate.toml:3:19: limits.teams.search.cost_per_minute: must be more than 0 and at most 18000000 US dollars",
                "tidegate.toml:5:9: limits.teams.search.burst: only a token bucket has one: leave it out, or write algorithm = \"token_bucket\"",
            ],
        ),
        (
            "[limits.default]\nalgorithm = 'bucket'",
            &[
                "tidegate.toml:2:13: limits.default.algorithm: `bucket` is not a choice here; the choices are: token_bucket, leaky_bucket, fixed_window, sliding_window",
            ],
        ),
        (
            "[limits.models.chat]\nconcurrency = 1\n[limits.upstreams.vllm]\nconcurrency = 1",
            &[
                "tidegate.toml:1:1: limits.models.chat: there is no model `chat`; there are no models",
                "tidegate.toml:3:1: limits.upstreams.vllm: there is no upstream `vllm`; there are no upstreams",
            ],
        ),
        (
            "[upstreams.a]\n[models.b]\n",
            &[
                "tidegate.toml:1:1: upstreams.a: `base_url` is missing: where is it, like \"http://10.0.0.5:8000/v1\"",
                "tidegate.toml:2:1: models.b.targets: at least one is needed, like [{ upstream = \"NAME\" }]",
            ],
        ),
        (
            "[retry]\nmax_attempts = 0",
            &["tidegate.toml:2:16: retry.max_attempts: counts the first attempt: 1 means no retry"],
        ),
        (
            "server.admin_listen = 'of'",
            &[
                "tidegate.toml:1:23: server.admin_listen: `of` is not an address to listen on: write IP and port, like \"127.0.0.1:8080\"; \"off\" for no admin port",
            ],
        ),
        (
            "server.admin_listen = '0.0.0.0:8081'",
            &[
                "tidegate.toml:1:23: server.admin_listen: other machines can reach 0.0.0.0:8081: set server.admin_token, or listen on 127.0.0.1",
            ],
        ),
        (
            "[server]\nlisten = '127.0.0.1:8081'\n",
            &[
                "tidegate.toml:1:1: server.admin_listen: is the callers' port too: choose another, or \"off\"",
            ],
        ),
        (
            "[server]\nadmin_listen = '[::]:8081'\nadmin_token = 3\n",
            &[
                "tidegate.toml:3:15: server.admin_token: a secret is written { env = \"NAME\" }, { file = \"/path\" } or as a string",
            ],
        ),
        (
            "[server]\nadmin_listen = '[::]:8081'\nadmin_token = { env = 'NONE' }\n",
            &[
                "tidegate.toml:3:15: server.admin_token: the environment variable NONE is not set: export it first",
            ],
        ),
        (
            "server.tls = { cert = 'no.pem', key = 'no.key' }",
            &[
                "tidegate.toml:1:14: server.tls: cannot read certificate no.pem: No such file or directory (os error 2)",
            ],
        ),
    ] {
        Case::new(text).fails_with(expected);
    }
}

#[test]
fn every_mistake_is_said_at_once() {
    Case::new(
        "[upstreams.vllm]\nbase_url = 'http://x/v1'\nmax_concurrency = 0\napi_kee = 'x'\n\
         [models.chat]\ntargets = [ { upstream = 'vlm', weight = 0 } ]\n\
         timeouts = { idle = '0s', conect = '1s' }\nprice = { input = -1, output = 1 }\n",
    )
    .fails_with(&[
        "tidegate.toml:3:19: upstreams.vllm.max_concurrency: 0 would let no call through; leave it out for no limit of ours",
        "tidegate.toml:4:1: unknown key `api_kee` in upstreams.vllm; did you mean `api_key`?",
        "tidegate.toml:6:11: models.chat.targets: every weight is 0, so no call could go anywhere",
        "tidegate.toml:6:26: models.chat.targets[0].upstream: there is no upstream `vlm`; did you mean `vllm`?",
        "tidegate.toml:7:21: models.chat.timeouts.idle: must be more than 0",
        "tidegate.toml:7:27: unknown key `conect` in models.chat.timeouts; did you mean `connect`?",
        "tidegate.toml:8:19: models.chat.price.input: must be 0, or 0.000001 to 1000000: US dollars per million tokens",
    ]);
}

#[test]
fn canaries_and_mirrors_are_checked() {
    Case::new(
        "[upstreams.a]\nbase_url = 'http://x/v1'\n[models.m]\n\
         targets = [{ upstream = 'a', match = { header = { name = 'x y', value = '1' } } }]\n\
         mirror = { upstream = 'b', share = 0.5 }\n",
    )
    .fails_with(&[
        "tidegate.toml:4:58: models.m.targets[0].match.header.name: is no name of a header",
        "tidegate.toml:5:23: models.m.mirror.upstream: there is no upstream `b`; did you mean `a`?",
    ]);
}

#[test]
fn one_mistake_is_said_once() {
    for (text, expected) in [
        (
            "upstreams.a = 3\nmodels.m.targets = [{ upstream = 'a' }]",
            "tidegate.toml:1:15: upstreams.a: expected a table, found the number 3",
        ),
        (
            "upstreams.a.base_url = 3\nmodels.m.targets = [{ upstream = 'a' }]",
            "tidegate.toml:1:24: upstreams.a.base_url: expected a string, found the number 3",
        ),
        (
            "models.m.targets = 3",
            "tidegate.toml:1:20: models.m.targets: expected a list, found the number 3",
        ),
        (
            "models.m.targets = [{ upstram = 'a' }]",
            "tidegate.toml:1:23: unknown key `upstram` in models.m.targets[0]; did you mean `upstream`?",
        ),
    ] {
        let problems = Case::new(text).load().expect_err("loads").to_string();
        assert_eq!(problems, expected);
    }
}

#[test]
fn mistakes_of_every_layer_name_their_layer() {
    let case = Case::new("[server]\nlisten = 1")
        .file("tidegate.prod.toml", "[server]\ndata_dri = 'x'")
        .profile("prod")
        .variable("TIDEGATE__SERVER__LIMITS__MAX_STREAMS", "many")
        .variable("TIDEGATE__", "x")
        .variable("TIDEGATE__LOG__ACCES", "off")
        .variable("TIDEGATE__LIMITS__DEFAULT__CONCURRENCY", "-7")
        .flag("--requests", &["limits", "default", "requests_per_minute"], "x");
    case.fails_with(&[
        "tidegate.prod.toml:2:1: unknown key `data_dri` in server; did you mean `data_dir`?",
        "tidegate.toml:2:10: server.listen: expected a string, found the number 1",
        "environment variable TIDEGATE__: names no key: write it like TIDEGATE__SERVER__LISTEN",
        "environment variable TIDEGATE__LIMITS__DEFAULT__CONCURRENCY: limits.default.concurrency: expected a whole number from 0 to 4294967295, found the number -7",
        "environment variable TIDEGATE__LOG__ACCES: unknown key `acces` in log; did you mean `access`?",
        "environment variable TIDEGATE__SERVER__LIMITS__MAX_STREAMS: server.limits.max_streams: expected a whole number from 0 to 4294967295, found a string",
        "--requests: limits.default.requests_per_minute: expected a whole number from 0 to 4294967295, found a string",
    ]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    Case::new("a = ").fails_with(&[
        "tidegate.toml:1:5: not TOML: string values must be quoted, expected literal string",
    ]);
    Case::new("[server]\nlisten = '127.0.0.1:1'\nlisten = '127.0.0.1:2'")
        .fails_with(&["tidegate.toml:3:1: not TOML: duplicate key"]);
    let case = Case::new("").variable("TIDEGATE_CONFIG", "missing.toml");
    case.fails_with(&["missing.toml: there is no such file: check --config or TIDEGATE_CONFIG"]);
    let case = Case::new("");
    fs::write(case.dir.path().join("tidegate.toml"), b"a = 1\nb = '\xff'").unwrap();
    case.fails_with(&["tidegate.toml: is not UTF-8 text (line 2)"]);
    let case = Case::new("").file("tidegate.test.toml", "").file("tidegate.prod.toml", "");
    case.profile("prdo")
        .fails_with(&["--profile: there is no tidegate.prdo.toml; did you mean `prod`?"]);
    Case::new("")
        .profile("x")
        .fails_with(&["--profile: there is no tidegate.x.toml; there are no profiles"]);
    Case::new("")
        .profile("../x")
        .fails_with(&["--profile: `../x` is no name of a profile: use letters, digits, - and _"]);
}

#[test]
fn an_upstream_nobody_uses_is_warned_of() {
    let loaded = Case::new("[upstreams.a]\nprotocol = 'sim'\nbase_url = 'http://x'").loads();
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "tidegate.toml:3:12: upstreams.a.base_url: the built-in simulator needs none",
            "tidegate.toml:1:1: upstreams.a: no model has it as a target",
        ]
    );
}

#[test]
fn oauth_is_checked_where_it_is_written() {
    let case = |oauth: &str| Case::new(&format!("[oauth]\n{oauth}"));
    case("token_lifetime = '10s'")
        .fails_with(&["tidegate.toml:2:18: oauth.token_lifetime: is not from \"1m\" to \"24h\""]);
    case("[oauth.issuers.corp]\nissuer = 'https://i.example'").fails_with(&[
        "tidegate.toml:2:1: oauth.issuers.corp.audience: is missing: tokens made for others must \
         not open this gateway",
    ]);
    let good = "[oauth.issuers.corp]\nissuer = 'https://i.example'\naudience = 'gate'";
    let loaded = case(good).loads();
    assert_eq!(loaded.config.oauth.issuers["corp"].caller_claim, "sub");
    assert!(loaded.warnings.is_empty());
    let open = case(&good.replace("https", "http")).loads();
    assert!(open.warnings[0].to_string().contains("issuers.corp.issuer: is plain HTTP"));
    let loopback = case(&good.replace("https://i.example", "http://[::1]:8080")).loads();
    assert!(loopback.warnings.is_empty());
}
