//! The files of signing keys: who may read them, how they come and go.

use aws_lc_rs::rand;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};
use tidegate_core::{Error, Kind, Origin, Result, Secret};

/// Longest key file that is read; ours have some 250 bytes.
const MAX_FILE_BYTES: u64 = 16 << 10;
const SUFFIX: &str = ".pem";

/// `oauth` in the data directory, for this user only.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn open(data_dir: &Path) -> Result<Self> {
        let path = data_dir.join("oauth");
        let directory = Self(path);
        directory.make().map_err(|cause| directory.io("cannot be made", cause))?;
        Ok(directory)
    }

    fn make(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.0)
    }

    /// The keys that are there, oldest first.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let failed = |cause| self.io("cannot be read", cause);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(name) = name.filter(|name| !name.starts_with('.')) {
                names.push(name.to_owned());
            }
        }
        // By time, then by name: the same on every gateway.
        names.sort_by(|one, other| {
            let time = |name: &str| super::name_of(name).map_or(0, |(_, made_at)| made_at);
            time(one).cmp(&time(other)).then_with(|| one.cmp(other))
        });
        Ok(names)
    }

    /// Waits until no other gateway changes something; held until dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let lock = || -> io::Result<File> {
            let file = private(OpenOptions::new().write(true).create(true).truncate(false))
                .open(self.0.join("lock"))?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|cause| self.io("cannot be locked", cause))
    }

    pub(super) fn read(&self, name: &str) -> Result<String> {
        let path = self.file(name);
        let read = || -> io::Result<String> {
            let file = File::open(&path)?;
            refuse_if_others_can_read(&file)?;
            let mut text = String::new();
            file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
            Ok(text)
        };
        read().map_err(|cause| {
            let message = format!("the signing key {} cannot be used: {cause}", path.display());
            Error::new(Kind::Internal, Origin::Gateway, message).caused_by(cause)
        })
    }

    /// Writes a key so that it is there whole or not at all, whatever happens.
    pub(super) fn write(&self, name: &str, pem: &Secret<String>) -> Result<()> {
        let write = || -> io::Result<()> {
            let draft = self.0.join(format!(".{name}.new"));
            let mut file = private(OpenOptions::new().write(true).create_new(true)).open(&draft)?;
            file.write_all(pem.expose().as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, self.file(name))?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|cause| self.io("cannot be written", cause))
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.file(name)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(self.io("cannot be written", cause))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn error(&self, problem: String) -> Error {
        let message = format!("the directory of signing keys {} {problem}", self.0.display());
        Error::new(Kind::Internal, Origin::Gateway, message)
    }

    fn io(&self, problem: &str, cause: io::Error) -> Error {
        self.error(format!("{problem}: {cause}")).caused_by(cause)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{SUFFIX}"))
    }
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[cfg(unix)]
fn refuse_if_others_can_read(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("others can read it: chmod 600 it, or delete it"));
    }
    Ok(())
}

#[cfg(not(unix))]
const fn refuse_if_others_can_read(_: &File) -> io::Result<()> {
    Ok(())
}

/// `der` as a PEM file.
pub(super) fn pem(der: &[u8]) -> String {
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}

pub(super) fn base64url(bytes: Vec<u8>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Twelve characters that nobody can guess.
pub(crate) fn random_word() -> Result<String> {
    let mut bytes = [0; 9];
    rand::fill(&mut bytes).map_err(|_| super::unsigned("there is no randomness"))?;
    // No dash: it parts the words of a key's name.
    Ok(URL_SAFE_NO_PAD.encode(bytes).replace(['-', '_'], "0"))
}
