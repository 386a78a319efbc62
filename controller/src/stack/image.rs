//! The image that a stack file names for a service, for whoever looks for it on an engine.

use rollout::ServiceName;

use super::{Rule, is_it};
use crate::orchestrator::swarm::Holder;
use crate::yaml::{Finding, Findings, Place, Tree, Value};

/// An image in a stack file, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The image, its variables replaced as `docker stack deploy` would; or the name of one that has no value.
    pub image: Result<String, String>,
    file: String,
    at: Place,
    key: String,
    shown: String,
}

impl Written {
    /// That nobody has it, as a finding at its place.
    #[must_use]
    pub fn missing(&self, why: String, mend: &str) -> Option<Finding> {
        let mut findings = Findings::new(&self.file);
        let mend = format!(
            "{mend}; or accept it: --allow {}",
            Rule::MissingImage.word()
        );
        findings.note(
            self.at,
            &self.key,
            Some(self.shown.clone()),
            why,
            Some(mend),
        );
        findings.in_order().pop()
    }
}

/// What is wrong with where an image is, and what helps; nothing where every node gets it.
#[must_use]
pub fn missing(image: &str, holder: &Holder) -> Option<(String, String)> {
    match holder {
        Holder::Found => None,
        Holder::HereAlone { nodes, words } => {
            let of = match *nodes {
                usize::MAX => "its swarm's other nodes".to_owned(),
                nodes => format!("the {} other nodes", nodes.saturating_sub(1)),
            };
            Some((
                format!(
                    "this engine has it, {of} cannot get it ({words}): a task there would be rejected"
                ),
                format!("docker push {image}, to a registry that every node reaches"),
            ))
        }
        Holder::Nobody { words, here } => {
            let here = if here.is_empty() {
                "none of that name".to_owned()
            } else {
                here.join(", ")
            };
            Some((
                format!(
                    "this engine does not have it, and {words}: its tasks would be rejected (this engine has: {here})"
                ),
                format!("build and push it, docker push {image}; or name one that is there"),
            ))
        }
    }
}

/// The image of `service` in the stack file `text`, which `name` names in findings; variables are asked of `variable`. `None`
/// where there is none: [`super::check`] says so.
#[must_use]
pub fn image(
    text: &str,
    name: &str,
    service: &ServiceName,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<Written> {
    let mut findings = Findings::new(name);
    let tree = Tree::parse(text, &mut findings)?;
    let services = Value::root(&tree)
        .map("", &mut findings)?
        .take("services")?;
    let services = services.map("", &mut findings)?;
    let (_, value) = services.entries().find(|(key, _)| is_it(key, service))?;
    let value = value.map("", &mut findings)?.take("image")?;
    let written = value.text("", &mut findings, |text| Some(text.to_owned()))?;
    Some(Written {
        image: interpolated(&written, variable),
        file: name.to_owned(),
        at: value.at(),
        key: value.key().to_owned(),
        shown: value.shown(),
    })
}

/// A text with its variables replaced: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`; `$$` is a dollar sign.
///
/// # Errors
/// The name of the first variable that has neither value nor default.
pub(crate) fn interpolated(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut whole = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        whole.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            whole.push('$');
            rest = after;
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, default, counts_empty, after) = match after.strip_prefix('{') {
            Some(braced) => {
                let (inside, after) = braced.split_once('}').ok_or_else(|| braced.to_owned())?;
                let end = inside.find(|c: char| !is_name(c)).unwrap_or(inside.len());
                let (name, more) = inside.split_at(end);
                let default = more.strip_prefix(":-").or_else(|| more.strip_prefix('-'));
                (name, default, !more.starts_with(':'), after)
            }
            None => {
                let end = after.find(|c: char| !is_name(c)).unwrap_or(after.len());
                let (name, after) = after.split_at(end);
                (name, None, true, after)
            }
        };
        let value = variable(name).filter(|value| counts_empty || !value.is_empty());
        let value = value.or_else(|| default.map(str::to_owned));
        whole.push_str(&value.ok_or_else(|| name.to_owned())?);
        rest = after;
    }
    whole.push_str(rest);
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "TAG" => Some("1.4.2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_as_a_deploy_would() {
        for (text, whole) in [
            ("web:1", Ok("web:1")),
            ("web:$TAG", Ok("web:1.4.2")),
            (
                "${REGISTRY:-registry:5000}/web:${TAG}",
                Ok("registry:5000/web:1.4.2"),
            ),
            ("web:${EMPTY:-2}", Ok("web:2")),
            ("web:${EMPTY-2}", Ok("web:")),
            ("web:${NONE-2}", Ok("web:2")),
            ("a$$b", Ok("a$b")),
            ("web:${NONE}", Err("NONE")),
            ("$NONE/web", Err("NONE")),
            ("web:${TAG:?say it}", Ok("web:1.4.2")),
            ("web:${NONE:?say it}", Err("NONE")),
        ] {
            let whole = whole.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(interpolated(text, variable), whole, "{text}");
        }
    }

    #[test]
    fn an_image_that_nobody_has_is_found_where_it_stands() {
        let text = "services:\n  web:\n    image: registry:5000/web:${TAG}\n";
        let service: ServiceName = "shop_web".parse().unwrap();
        let written = image(text, "stack.yml", &service, variable).unwrap();
        assert_eq!(written.image, Ok("registry:5000/web:1.4.2".to_owned()));
        let finding = written
            .missing("nobody has it".to_owned(), "push it")
            .unwrap();
        assert_eq!(
            finding.to_string(),
            "stack.yml:3:12: services.web.image: \"registry:5000/web:${TAG}\": nobody has it\n  push it; or accept it: --allow missing-image"
        );
        let other: ServiceName = "api".parse().unwrap();
        assert_eq!(image(text, "stack.yml", &other, variable), None);
    }
}
