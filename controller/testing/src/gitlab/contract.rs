//! GitLab's own API document, by which requests of ours are checked: that there is such a call, that every parameter and
//! field of it is one that it has, that none is missing, and that each is of its type and one of its values.
//!
//! Only requests: of answers the document does not say where they are null (GitLab's README of it names its defects).

use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of GitLab's document, if the environment names one: `FRIDAY_GITLAB_CONTRACT`.
#[must_use]
pub fn contract_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("FRIDAY_GITLAB_CONTRACT")?;
    (!folder.is_empty()).then(|| PathBuf::from(folder))
}

/// The document.
#[derive(Debug, Clone)]
pub struct Contract(Value);

impl Contract {
    /// The document in a folder.
    ///
    /// # Panics
    /// There is none: whoever asks for it has said where it is.
    #[must_use]
    pub fn read(folder: &Path) -> Self {
        let file = folder.join("openapi-subset.yaml");
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let document = serde_saphyr::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self(document)
    }

    /// What is wrong with a request; `path` is below `/api/v4`.
    #[must_use]
    pub fn check(&self, method: &str, path: &str, query: &str, body: &Value) -> Vec<String> {
        let about = format!("{method} {path}");
        let Some(operation) = self.operation(method, path) else {
            return vec![format!("{about}: there is no such call")];
        };
        let mut wrong = Vec::new();
        let parameters = operation["parameters"].as_array();
        let named = |name: &str| {
            let mut all = parameters
                .into_iter()
                .flatten()
                .map(|one| self.resolve(one));
            all.find(|one| one["in"] == "query" && one["name"] == name)
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match named(name) {
                None => wrong.push(format!("{about}: no parameter {name}")),
                Some(one) => {
                    let allowed = &one["schema"]["enum"];
                    let is_allowed = allowed
                        .as_array()
                        .is_none_or(|all| all.contains(&Value::from(value)));
                    if !is_allowed {
                        wrong.push(format!(
                            "{about}: parameter {name}: {value} is none of {allowed}"
                        ));
                    }
                }
            }
        }
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        match (schema.is_null(), body.is_null()) {
            (true, false) => wrong.push(format!("{about}: takes no body")),
            (false, _) => self.check_value(schema, body, &about, &mut wrong),
            (true, true) => {}
        }
        wrong
    }

    fn operation(&self, method: &str, path: &str) -> Option<&Value> {
        let parts: Vec<&str> = path.split('/').collect();
        let paths = self.0["paths"].as_object()?;
        let fits = |pattern: &str| {
            let pattern = pattern.strip_prefix("/api/v4").unwrap_or(pattern);
            let wanted: Vec<&str> = pattern.split('/').collect();
            wanted.len() == parts.len()
                && wanted
                    .iter()
                    .zip(&parts)
                    .all(|(wanted, part)| wanted.starts_with('{') || wanted == part)
        };
        let mut found = paths.iter().filter(|(pattern, _)| fits(pattern));
        found.find_map(|(_, operations)| operations.get(method.to_lowercase()))
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let reference = value["$ref"].as_str();
        let target = reference.and_then(|to| self.0.pointer(to.trim_start_matches('#')));
        target.unwrap_or(value)
    }

    fn check_value(&self, schema: &Value, value: &Value, about: &str, wrong: &mut Vec<String>) {
        let schema = self.resolve(schema);
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            _ => true,
        };
        if !fits {
            wrong.push(format!("{about}: {value} is no {}", schema["type"]));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            wrong.push(format!("{about}: {value} is none of {}", schema["enum"]));
        }
        if let (Some(longest), Some(text)) = (schema["maxLength"].as_u64(), value.as_str())
            && text.chars().count() as u64 > longest
        {
            wrong.push(format!("{about}: longer than {longest}"));
        }
        let (Some(fields), Some(known)) = (value.as_object(), schema["properties"].as_object())
        else {
            return;
        };
        for (name, value) in fields {
            match known.get(name) {
                None => wrong.push(format!("{about}: no field {name}")),
                Some(schema) => self.check_value(schema, value, &format!("{about} {name}"), wrong),
            }
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if name.as_str().is_some_and(|name| !fields.contains_key(name)) {
                wrong.push(format!("{about}: {name} is missing"));
            }
        }
    }
}
