//! Reading config.json.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Container, Error, container, fields, spelling};

/// Largest config.json that is read. The largest honest ones, with a long
/// seccomp filter and many mounts, have some hundred KiB.
pub const MAX_BYTES: u64 = 16 << 20;

/// What messages call it.
pub(crate) const CONFIG: &str = "config.json";

/// Reads and checks the config.json of the bundle folder `bundle`.
pub fn load(bundle: impl AsFd) -> Result<Container, Error> {
    parse(&read(bundle)?)
}

/// Checks the text of a config.json.
pub fn parse(json: &[u8]) -> Result<Container, Error> {
    let mut warnings = Vec::new();
    let spec: Spec = part(json, CONFIG, "", &mut warnings)?;
    container::resolve(&spec, warnings)
}

/// Parses a document that is config.json's part at the JSON path `at`, and looks
/// all its properties up.
pub(crate) fn part<T: DeserializeOwned>(
    json: &[u8],
    document: &'static str,
    at: &str,
    warnings: &mut Vec<String>,
) -> Result<T, Error> {
    // Parsed a second time for the names of the properties alone: the typed form
    // drops those it does not know.
    let mut names: Value = typed(json, document)?;
    let known = if spelling::correct(at, &mut names, warnings) {
        typed(names.to_string().as_bytes(), document)?
    } else {
        typed(json, document)?
    };
    fields::classify(&names, document, at, warnings)?;
    Ok(known)
}

/// Duplicate properties, wrong types and nesting beyond 128 levels are errors
/// that name the JSON path as well as line and column.
pub(crate) fn typed<T: DeserializeOwned>(json: &[u8], document: &'static str) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|e| {
        let path = e.path().to_string();
        let source = e.into_inner();
        // A syntax error says nothing about the property it happens to be in.
        let path = if source.is_data() && path != "." {
            path
        } else {
            String::new()
        };
        Error::Malformed {
            document,
            path,
            source,
        }
    })?;
    deserializer.end().map_err(|source| Error::Malformed {
        document,
        path: String::new(),
        source,
    })?;
    Ok(parsed)
}

/// The text of the config.json of the bundle folder `bundle`.
pub fn read(bundle: impl AsFd) -> Result<Vec<u8>, Error> {
    // Non-blocking, so that a fifo of that name does not hang us.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(bundle, "config.json", flags, Mode::empty())
        .map_err(|e| Error::Read(e.into()))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(Error::Read)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile);
    }
    let too_large = Error::TooLarge {
        max_bytes: MAX_BYTES,
    };
    if metadata.len() > MAX_BYTES {
        return Err(too_large);
    }
    // It may grow while it is read.
    let mut text = Vec::with_capacity(metadata.len() as usize);
    let mut limited = file.take(MAX_BYTES + 1);
    limited.read_to_end(&mut text).map_err(Error::Read)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(too_large);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::error::Error as _;

    /// The whole chain, as the edge prints it.
    fn message(error: &Error) -> String {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text += &format!(": {inner}");
            source = inner.source();
        }
        text
    }

    fn parsed(json: &str) -> String {
        message(&parse(json.as_bytes()).unwrap_err())
    }

    #[test]
    fn malformed_text_names_line_and_column() {
        for (json, expected) in [
            (
                "",
                "config.json: EOF while parsing a value at line 1 column 0",
            ),
            (
                "{\n \"root\": {\"path\": \"r\"",
                "config.json: EOF while parsing an object at line 2 column 21",
            ),
            (
                "{} x",
                "config.json: trailing characters at line 1 column 4",
            ),
            ("\0", "config.json: expected value at line 1 column 1"),
        ] {
            assert_eq!(parsed(json), expected);
        }
    }

    #[test]
    fn wrong_types_name_the_path() {
        assert_eq!(
            parsed("{\"linux\": {\"namespaces\": [{\"type\": \"moon\"}]}}"),
            "config.json: linux.namespaces[0].type: unknown variant `moon`, expected one of \
             `mount`, `cgroup`, `uts`, `ipc`, `user`, `pid`, `network`, `time` at line 1 column 41"
        );
        assert_eq!(
            parsed("[1]").split(" at").next(),
            Some("config.json: [0]: invalid type: integer `1`, expected a string")
        );
        assert!(
            parsed("{\"ociVersion\":\"1.0.0\",\"ociVersion\":\"1.0.0\"}")
                .contains("duplicate field `ociVersion`")
        );
        assert!(
            parsed(
                r#"{"process":{"user":{},"cwd":"/","rlimits":[{"type":"RLIMIT_CPU","hard":-1}]}}"#
            )
            .contains("process.rlimits[0].hard: invalid value: integer `-1`")
        );
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parsed(&deep).contains("recursion limit exceeded"));
    }

    #[test]
    fn files_that_are_none() {
        let bundle = tempfile::tempdir().unwrap();
        let folder = File::open(bundle.path()).unwrap();
        assert_eq!(
            message(&load(&folder).unwrap_err()),
            "config.json: No such file or directory (os error 2)"
        );
        let config = bundle.path().join("config.json");
        std::fs::create_dir(&config).unwrap();
        assert_eq!(
            message(&load(&folder).unwrap_err()),
            "config.json: not a regular file"
        );
        std::fs::remove_dir(&config).unwrap();
        File::create(&config)
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        assert_eq!(
            message(&load(&folder).unwrap_err()),
            "config.json: over the limit of 16777216 bytes"
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(json in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&json);
        }
    }
}
