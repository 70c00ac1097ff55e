//! Where a configuration is looked for, and in which order its layers lie.

use super::{
    environment::Environment,
    problem::{Place, Problem, Problems, hint},
    tree::Node,
};
use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The file taken from the working directory when none is named.
pub(crate) const FILE: &str = "tidegate.toml";
/// What the variables that set one value begin with.
const PREFIX: &str = "TIDEGATE__";
/// The variable that names the file.
const FILE_VARIABLE: &str = "TIDEGATE_CONFIG";
/// Longest configuration file: thousands of upstreams fit, a file named by mistake does not.
const MAX_BYTES: u64 = 16 << 20;

/// What the command line says of the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Sources {
    /// Configuration file [default: $TIDEGATE_CONFIG, then ./tidegate.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Lays tidegate.NAME.toml over the configuration file
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Values of other flags, laid over everything.
    #[arg(skip)]
    pub(crate) overrides: Vec<Override>,
}

/// A flag that sets a value of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// As written on the command line: `--listen`.
    pub(crate) flag: &'static str,
    /// Which value: `["server", "listen"]`.
    pub(crate) key: &'static [&'static str],
    /// The value as text.
    pub(crate) value: String,
}

/// All layers in one, and what was wrong on the way.
pub(crate) struct Layers {
    pub(crate) tree: Node,
    /// Variables and flags that fit nowhere.
    pub(crate) problems: Vec<Problem>,
    pub(crate) files: Vec<PathBuf>,
}

/// Reads the files and lays environment and flags over them.
///
/// # Errors
///
/// When a file cannot be read or is not TOML: there is nothing to look at further.
pub(crate) fn read(sources: &Sources, environment: &Environment) -> Result<Layers, Problems> {
    let files = find(sources, environment)?;
    let mut tree = Node::empty(Place::Nowhere);
    let mut problems = Vec::new();
    for file in &files {
        match read_file(file, environment) {
            Ok(layer) if matches!(tree.place, Place::Nowhere) => tree = layer,
            Ok(layer) => tree.overlay(layer),
            Err(found) => problems.extend(found),
        }
    }
    Problems::none_in(problems)?;
    let mut problems = Vec::new();
    lay_environment(&mut tree, environment, &mut problems);
    for Override { flag, key, value } in &sources.overrides {
        let place = Place::Flag((*flag).into());
        if let Err(message) = tree.set(key, Node::loose(place.clone(), value)) {
            problems.push(Problem::new(place, message));
        }
    }
    Ok(Layers { tree, problems, files })
}

fn lay_environment(tree: &mut Node, environment: &Environment, problems: &mut Vec<Problem>) {
    for name in environment.unreadable_beginning_with(PREFIX) {
        problems.push(Problem::new(Place::Env(name.into()), "its value is not UTF-8 text"));
    }
    for (name, value) in environment.beginning_with(PREFIX) {
        let place = Place::Env(name.into());
        let path: Vec<&str> = name[PREFIX.len()..].split("__").collect();
        if path.iter().any(|word| word.is_empty()) {
            let message = "names no key: write it like TIDEGATE__SERVER__LISTEN";
            problems.push(Problem::new(place, message));
        } else if let Err(message) = tree.set(&path, Node::loose(place.clone(), value)) {
            problems.push(Problem::new(place, message));
        }
    }
}

/// The files to read, in order.
fn find(sources: &Sources, environment: &Environment) -> Result<Vec<PathBuf>, Problem> {
    let named =
        sources.config.clone().or_else(|| environment.variable(FILE_VARIABLE).map(Into::into));
    let there = environment.locate(Path::new(FILE)).exists();
    let file = named.or_else(|| there.then(|| FILE.into()));
    let Some(profile) = &sources.profile else { return Ok(Vec::from_iter(file)) };
    let over = profile_file(file.as_deref().unwrap_or(Path::new(FILE)), profile, environment)?;
    Ok(file.into_iter().chain([over]).collect())
}

/// `tidegate.toml` and `prod` make `tidegate.prod.toml`.
fn profile_file(file: &Path, profile: &str, environment: &Environment) -> Result<PathBuf, Problem> {
    let wrong = |message: String| Problem::new(Place::Flag("--profile".into()), message);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if profile.is_empty() || !profile.chars().all(plain) {
        let message = format!("`{profile}` is no name of a profile: use letters, digits, - and _");
        return Err(wrong(message));
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let over = file.with_file_name(format!("{stem}.{profile}.toml"));
    if environment.locate(&over).exists() {
        return Ok(over);
    }
    let known = profiles_beside(&environment.locate(file), &stem);
    let hint = hint(profile, known.iter().map(String::as_str), "profiles");
    Err(wrong(format!("there is no {}{hint}", over.display())))
}

/// Names of the profiles there are.
fn profiles_beside(file: &Path, stem: &str) -> Vec<String> {
    let dir = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut profiles: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let profile = name.strip_prefix(stem)?.strip_prefix('.')?.strip_suffix(".toml")?;
            Some(profile.to_owned())
        })
        .collect();
    profiles.sort();
    profiles
}

fn read_file(file: &Path, environment: &Environment) -> Result<Node, Vec<Problem>> {
    let name: Arc<str> = file.display().to_string().into();
    let text = read_text(&environment.locate(file))
        .map_err(|message| vec![Problem::new(Place::WholeFile(name.clone()), message)])?;
    Node::parse(&name, &text)
}

fn read_text(path: &Path) -> Result<String, String> {
    let unreadable = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => {
            "there is no such file: check --config or TIDEGATE_CONFIG".into()
        }
        io::ErrorKind::IsADirectory => "is a directory: name the file in it".into(),
        _ => format!("cannot be read: {cause}"),
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err("is longer than 16 MiB: that is no configuration".into());
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        format!("is not UTF-8 text (line {line})")
    })
}
