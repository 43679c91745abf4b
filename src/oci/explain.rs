//! What becomes of a config.json, property by property: `vmrun explain`. It asks the
//! table and the parser that containers are made by.

use serde_json::Value;

use crate::fields::{self, FIELDS, Field, Treatment};
use crate::{Error, load};

/// Most refusals that are looked for.
const MAX_REFUSALS: usize = 64;

/// One line of the explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// JSON path; `[]` stands for entries of a list.
    pub path: String,
    /// How many such properties there are.
    pub count: usize,
    /// Who sees to it: `guest`, `host`, `host and guest`, `refused`, ...
    pub word: &'static str,
    /// How, or why not.
    pub note: String,
}

/// The whole explanation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explanation {
    /// Properties that are in the table, in its order, then unknown ones.
    pub properties: Vec<Line>,
    /// What keeps the container from being made, by the order of checks.
    pub refusals: Vec<Line>,
}

/// Explains the text of a config.json. An error is one of its form: there is nothing
/// to be explained.
pub fn explain(json: &[u8]) -> Result<Explanation, Error> {
    let original: Value = load::typed(json, load::CONFIG)?;
    let mut explanation = Explanation {
        properties: properties(&original)?,
        refusals: Vec::new(),
    };
    let mut document = original.clone();
    while explanation.refusals.len() < MAX_REFUSALS {
        let text = document.to_string();
        let (path, note) = match load::parse(text.as_bytes()) {
            Ok(_) => break,
            Err(Error::Property { path, problem }) => (path, problem),
            Err(Error::Malformed { path, source, .. }) if !path.is_empty() => {
                (path, without_place(&source.to_string()))
            }
            Err(other) => return Err(other),
        };
        let steps = steps(&path);
        let is_first = explanation.refusals.is_empty();
        let is_told = explanation.refusals.iter().any(|line| line.path == path);
        if is_told || (!is_first && find(&mut original.clone(), &steps).is_none()) {
            // It follows from what was taken away.
            break;
        }
        explanation.refusals.push(Line {
            count: 1,
            word: Treatment::Refused.word(),
            note,
            path,
        });
        // The next one shows when this one is away.
        if !take_away(&mut document, &steps) {
            break;
        }
    }
    Ok(explanation)
}

/// Line and column are those of the text that was made here.
fn without_place(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

fn properties(document: &Value) -> Result<Vec<Line>, Error> {
    let mut counts = vec![0; FIELDS.len()];
    let mut unknown = Vec::new();
    fields::visit(document, load::CONFIG, "", &mut |path, field| {
        match field.and_then(|f| FIELDS.iter().position(|known| known.path == f.path)) {
            Some(i) => counts[i] += 1,
            None if unknown.len() < MAX_REFUSALS => unknown.push(Line {
                path: path.to_owned(),
                count: 1,
                word: "ignored",
                note: "not a property of the specification".to_owned(),
            }),
            None => {}
        }
        Ok(())
    })?;
    let present = FIELDS.iter().zip(counts).filter(|&(_, count)| count > 0);
    let line = |(field, count): (&Field, usize)| Line {
        path: field.path.to_owned(),
        count,
        word: field.treatment.word(),
        note: field.note.to_owned(),
    };
    Ok(present.map(line).chain(unknown).collect())
}

/// `a.b[1].c` as `a`, `b`, `1`, `c`.
fn steps(path: &str) -> Vec<String> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (name, indices) = part.split_once('[').unwrap_or((part, ""));
        steps.push(name.to_owned());
        let indices = indices.split(['[', ']']).filter(|i| !i.is_empty());
        steps.extend(indices.map(str::to_owned));
    }
    steps
}

fn find<'v>(document: &'v mut Value, steps: &[String]) -> Option<&'v mut Value> {
    steps.iter().try_fold(document, |at, step| match at {
        Value::Object(members) => members.get_mut(step),
        Value::Array(entries) => entries.get_mut(step.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Properties that have to be there, by their last step, and values that will do.
const WILL_DO: [(&str, &str); 6] = [
    ("ociVersion", "1.0.0"),
    ("path", "/x"),
    ("cwd", "/"),
    ("destination", "/x"),
    ("source", "/x"),
    ("type", "tmpfs"),
];

/// Makes the property at `steps` one that is not refused. `false` if that cannot be.
fn take_away(document: &mut Value, steps: &[String]) -> bool {
    let Some((last, above)) = steps.split_last() else {
        return false;
    };
    let Some(above) = find(document, above) else {
        return false;
    };
    let will_do = WILL_DO.iter().find(|(name, _)| name == last);
    match (above, will_do) {
        (Value::Object(members), Some((_, value))) => {
            members.insert(last.clone(), Value::from(*value));
            true
        }
        (Value::Object(members), None) => members.remove(last).is_some(),
        (Value::Array(entries), _) => {
            let entry = last.parse().ok().and_then(|i: usize| entries.get_mut(i));
            match entry {
                Some(entry @ Value::String(_)) => *entry = Value::from("defaults"),
                // One of them is enough to be told, and the others keep no numbers.
                Some(_) => entries.clear(),
                None => return false,
            }
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: &Value) -> Explanation {
        explain(config.to_string().as_bytes()).unwrap()
    }

    fn config() -> Value {
        serde_json::from_str(include_str!("testdata/runc-spec.json")).unwrap()
    }

    #[test]
    fn nothing_keeps_what_docker_writes_from_running() {
        let docker: Value =
            serde_json::from_str(include_str!("testdata/docker-config.json")).unwrap();
        let explanation = of(&docker);
        assert_eq!(explanation.refusals, []);
        let word = |path: &str| {
            let found = explanation.properties.iter().find(|line| line.path == path);
            found.map(|line| (line.word, line.count))
        };
        assert_eq!(word("hooks.prestart"), Some(("host", 1)));
        assert_eq!(word("mounts[].destination"), Some(("guest", 10)));
        assert_eq!(word("linux.seccomp.defaultAction"), Some(("guest", 1)));
        assert_eq!(word("linux.intelRdt"), None);
        assert!(
            explanation
                .properties
                .iter()
                .all(|line| line.word != "ignored")
        );
    }

    #[test]
    fn every_refusal_and_not_only_the_first() {
        let mut config = config();
        config["vm"] = json!({"hypervisor": {"path": "/x"}});
        config["mounts"][1]["options"] = json!(["remount", "nosuid", "idmap"]);
        config["process"]["cwd"] = json!("relative");
        config["process"]["oomScoreAdj"] = json!(5000);
        config["linux"]["newThing"] = json!(1);
        let explanation = of(&config);
        let refused: Vec<_> = explanation
            .refusals
            .iter()
            .map(|line| line.path.as_str())
            .collect();
        assert_eq!(
            refused,
            [
                "vm",
                "process.cwd",
                "process.oomScoreAdj",
                "mounts[1].options[0]",
                "mounts[1].options[2]",
            ]
        );
        assert_eq!(
            explanation.properties.last().unwrap().path,
            "linux.newThing"
        );
    }

    #[test]
    fn what_follows_from_a_refusal_is_not_told() {
        let mut config = config();
        config["linux"]["namespaces"] = json!([{"type": "pid", "path": "/x"}]);
        let refused = of(&config).refusals;
        assert_eq!(refused[0].path, "linux.namespaces[0].path");
        assert_eq!(refused.len(), 1, "{refused:?}");
        config["process"]["args"] = json!([]);
        assert_eq!(of(&config).refusals[0].path, "process.args");
    }

    #[test]
    fn a_text_that_is_no_configuration() {
        assert!(explain(b"{").is_err());
        assert!(explain(b"[1]").is_err());
    }
}
