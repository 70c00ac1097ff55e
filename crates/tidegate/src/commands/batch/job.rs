//! From flags to a job, and to what carries its calls.

use super::{
    args::{LimitArgs, RowArgs, RunArgs, UpstreamArgs},
    telling::Stop,
};
use crate::{
    assembly::{self, Assembled, BatchUpstream},
    config::{Environment, Problems},
};
use std::{path::PathBuf, sync::Arc};
use tidegate_batch::{InputOptions, Job};
use tidegate_policy::price;

/// The engine the calls go through; a plan has no limits, as it calls nobody.
pub(super) fn assemble(
    upstream: &UpstreamArgs,
    limits: Option<&LimitArgs>,
    environment: &Environment,
) -> Result<Assembled, Stop> {
    let flags = BatchUpstream {
        base_url: upstream.base_url.clone(),
        api_key: environment.api_key(upstream.api_key_env.as_deref()).map_err(Stop::usage)?,
        concurrency: limits.and_then(|limits| limits.concurrency.0),
        rpm: limits.and_then(|limits| limits.rpm),
        tpm: limits.and_then(|limits| limits.tpm),
        max_qps: limits.and_then(|limits| limits.max_qps),
        max_attempts: limits.map_or(1, |limits| limits.max_attempts),
        sources: upstream.sources.clone(),
    };
    let mut assembled = assembly::for_batch(&flags, environment).map_err(|error| match error
        .downcast::<Problems>(
    ) {
        Ok(problems) => Stop::Configuration(problems),
        // What is wrong with a URL, a model or a key: nothing has been opened yet.
        Err(other) => Stop::usage(format!("{other:#}")),
    })?;
    if let (Some(input), Some(output)) = (upstream.price_input, upstream.price_output) {
        let told = price::Options::flat(input, output).price();
        let told = told.map_err(|flaw| {
            let field = flaw.field;
            Stop::usage(format!(
                "--price-{field} is more than a dollar per token: it is per million"
            ))
        })?;
        assembled.prices = Arc::new(move |_| Some(told));
    }
    Ok(assembled)
}

/// The job; `arguments` are what runs it again.
pub(super) fn of(
    args: &RunArgs,
    path: PathBuf,
    arguments: Vec<String>,
    default_model: Option<String>,
) -> Job {
    let mut job = Job::new(input(&args.rows, path, default_model));
    job.output = args.output.output.clone();
    job.format = args.output.format.into();
    job.order = args.output.order.into();
    job.overwrite = args.output.overwrite;
    job.skip_invalid = args.rows.skip_invalid;
    job.dedup = args.rows.dedup;
    job.concurrency = args.limits.concurrency.0;
    job.max_attempts = args.limits.max_attempts;
    job.timeout = args.limits.timeout;
    job.deadline = args.limits.deadline;
    job.max_cost = args.limits.max_cost;
    job.max_errors = args.limits.max_errors;
    job.arguments = arguments;
    job
}

/// What the rows are made of.
pub(super) fn input(rows: &RowArgs, path: PathBuf, default_model: Option<String>) -> InputOptions {
    InputOptions {
        path,
        model: rows.model.clone(),
        default_model,
        endpoint: rows.endpoint,
        prompt: rows.prompt.clone(),
        prompt_file: rows.prompt_file.clone(),
        system: rows.system.clone(),
        set: rows.set.clone(),
        schema: rows.schema.clone(),
        image_column: rows.image_column.clone(),
        limit: rows.limit,
        sample: rows.sample,
        seed: rows.seed,
        priority_column: rows.priority_column.clone(),
        group_by: rows.group_by.map(Into::into),
        max_row_bytes: rows.max_row,
        ..InputOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::retry::Again, *};
    use clap::Parser;
    use std::time::Duration;
    use tidegate_batch::{MaxErrors, Order};
    use tidegate_core::Operation;

    fn parse(arguments: &[&str]) -> Result<RunArgs, String> {
        let words = ["batch"].iter().chain(arguments);
        Again::try_parse_from(words).map(|again| again.run).map_err(|error| error.to_string())
    }

    #[test]
    fn an_input_is_enough() {
        let args = parse(&["data.jsonl"]).unwrap();
        let job = of(&args, "data.jsonl".into(), Vec::new(), Some("sim-small".into()));
        assert_eq!((job.concurrency, job.max_attempts), (None, 5));
        assert_eq!(job.timeout, Duration::from_secs(600));
        assert_eq!(job.input.endpoint, Operation::ChatCompletions);
        assert_eq!(job.input.default_model.as_deref(), Some("sim-small"));
    }

    #[test]
    fn flags_become_options() {
        let args = parse(&[
            "data.csv",
            "-c",
            "40",
            "--set",
            "body.a=b=c",
            "--endpoint",
            "/v1/embeddings",
            "--max-cost",
            "$5",
            "--max-errors",
            "2%",
            "-o",
            "x.csv",
            "--order",
            "completion",
        ])
        .unwrap();
        let job = of(&args, "data.csv".into(), Vec::new(), None);
        assert_eq!(job.concurrency, Some(40));
        assert_eq!(job.input.set, [("body.a".into(), "b=c".into())]);
        assert_eq!(job.input.endpoint, Operation::Embeddings);
        assert_eq!((job.max_cost, job.max_errors), (Some(5.0), Some(MaxErrors::Percent(2.0))));
        assert_eq!(job.order, Order::Completion);
    }

    #[test]
    fn bad_flags_say_what_is_meant() {
        for (arguments, said) in [
            (&["x", "-c", "0"][..], "auto, or a number"),
            (&["x", "--set", "temperature"], "PATH=VALUE"),
            (&["x", "--endpoint", "chats"], "one of chat, completions"),
            (&["x", "--rpm=-1"], "above 0"),
            (&["x", "--price-input", "1"], "--price-output"),
            (&["x", "--concurency", "1"], "--concurrency"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
