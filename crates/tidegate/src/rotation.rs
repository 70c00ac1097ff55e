//! Secrets in files, followed as they are rotated: what is written into the file is in use within
//! a second or so, without a restart and without a connection dropped.
//!
//! *Why by looking:* Kubernetes replaces a symbolic link two directories up, Vault writes in place,
//! others rename, network file systems tell nobody. A look at a few short files a second finds all
//! of it. *Why twice:* a file that is written in place can be seen half, so a new secret counts
//! when two looks in a row have found the same.
//!
//! A file that is gone, empty or unreadable changes nothing: the secret before stays in use.

use crate::{
    config::{Loaded, Owner, SecretFile},
    output,
};
use std::{sync::Arc, time::Duration};
use tidegate_core::Secret;
use tidegate_sdk::Client;
use tokio::sync::watch;

/// How often the files are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// The secrets of a gateway that are in files.
pub(crate) struct Rotation<'a> {
    files: Arc<[SecretFile]>,
    states: Vec<State>,
    client: &'a Client,
    admin_token: Option<watch::Sender<Secret<String>>>,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct State {
    /// In use.
    current: Option<Secret<String>>,
    /// Found by the last look, if it is another.
    next: Option<Secret<String>>,
    failing: bool,
}

/// What a look at a file comes to.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// This is to be used from now on.
    Use(Secret<String>),
    /// It can no longer be read, for the first time.
    Fails(String),
    /// It can be read again and says what it said before.
    Recovers,
}

impl State {
    fn look(&mut self, found: Result<Secret<String>, String>) -> Step {
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                self.next = None;
                let is_new = !std::mem::replace(&mut self.failing, true);
                return if is_new { Step::Fails(why) } else { Step::Nothing };
            }
        };
        if self.current.as_ref() == Some(&found) {
            self.next = None;
            let recovers = std::mem::take(&mut self.failing);
            return if recovers { Step::Recovers } else { Step::Nothing };
        }
        if self.next.as_ref() != Some(&found) {
            self.next = Some(found);
            return Step::Nothing;
        }
        self.failing = false;
        self.current = self.next.take();
        Step::Use(found)
    }
}

impl<'a> Rotation<'a> {
    /// Follows the files of `loaded` for `client` and for whoever holds the other end of
    /// `admin_token`.
    pub(crate) fn new(
        loaded: &Loaded,
        client: &'a Client,
        admin_token: Option<watch::Sender<Secret<String>>>,
    ) -> Self {
        let files: Arc<[SecretFile]> = loaded.secret_files.clone().into();
        let states = files.iter().map(|file| {
            let current = match &file.owner {
                Owner::ApiKey(upstream) => loaded.api_keys.get(upstream),
                Owner::ClientSecret(upstream) => loaded.client_secrets.get(upstream),
                Owner::AdminToken => loaded.admin_token.as_ref(),
            };
            State { current: current.cloned(), ..State::default() }
        });
        Self { states: states.collect(), files, client, admin_token }
    }

    /// Puts new secrets to use, for as long as it is polled.
    pub(crate) async fn follow(mut self) {
        if self.files.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(EVERY).await;
            let files = Arc::clone(&self.files);
            let look = move || files.iter().map(SecretFile::read).collect::<Vec<_>>();
            // A look that panicked or was refused a thread is made up for by the next.
            let Ok(found) = tokio::task::spawn_blocking(look).await else { continue };
            for (index, found) in found.into_iter().enumerate() {
                let step = self.states[index].look(found);
                self.take(&self.files[index], step);
            }
        }
    }

    fn take(&self, file: &SecretFile, step: Step) {
        let (owner, place) = (&file.owner, file.shown.display());
        match step {
            Step::Nothing => {}
            Step::Use(secret) => match self.put(owner, secret) {
                Ok(()) => output::note(&format!("{owner}: the new secret in {place} is in use")),
                Err(error) => output::note(&format!("warning: {owner}: {}", error.message())),
            },
            Step::Fails(why) => {
                output::note(&format!("warning: {owner}: {why}; the secret before stays in use"));
            }
            Step::Recovers => output::note(&format!("{owner}: {place} can be read again")),
        }
    }

    fn put(&self, owner: &Owner, secret: Secret<String>) -> tidegate_core::Result<()> {
        match owner {
            Owner::ApiKey(upstream) => self.client.replace_api_key(upstream, &secret),
            Owner::ClientSecret(upstream) => self.client.replace_client_secret(upstream, secret),
            Owner::AdminToken => {
                if let Some(token) = &self.admin_token {
                    token.send_replace(secret);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_counts_when_seen_twice_and_a_file_that_fails_changes_nothing() {
        let is = |text: &str| Ok(Secret::new(text.to_owned()));
        let mut state = State { current: is("old").ok(), ..State::default() };
        for (found, step) in [
            (is("old"), Step::Nothing),
            (is("ne"), Step::Nothing),
            (is("new"), Step::Nothing),
            (is("new"), Step::Use(Secret::new("new".into()))),
            (is("new"), Step::Nothing),
            (Err("gone".into()), Step::Fails("gone".into())),
            (Err("empty".into()), Step::Nothing),
            (is("new"), Step::Recovers),
            (is("newer"), Step::Nothing),
            (Err("gone".into()), Step::Fails("gone".into())),
            (is("newer"), Step::Nothing),
            (is("newer"), Step::Use(Secret::new("newer".into()))),
            (is("newer"), Step::Nothing),
        ] {
            assert_eq!(state.look(found), step);
        }
    }
}
