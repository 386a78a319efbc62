//! Image references: what they name, and what of them is pinned.

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// An image as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// All but the digest: `registry:5000/team/worker:v2`. Empty where an image is named by its id alone.
    pub(super) name: String,
    /// `sha256:…`, where it is written.
    pub(super) digest: Option<String>,
}

impl Reference {
    /// `None` for what cannot be an image: it would become part of a path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if is_digest(text) {
            return Some(Self {
                name: String::new(),
                digest: Some(text.to_owned()),
            });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) if is_digest(digest) => (name, Some(digest.to_owned())),
            Some(_) => return None,
            None => (text, None),
        };
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_./:[]".contains(&b);
        let is_name = name.bytes().all(allowed)
            && name
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[')
            && name.len() <= 500
            && name.split('/').all(|part| !part.is_empty() && part != "..");
        is_name.then(|| Self {
            name: name.to_owned(),
            digest,
        })
    }

    /// The name without its tag.
    pub(super) fn repository(&self) -> &str {
        let last = self.name.rfind('/').map_or(0, |slash| slash + 1);
        match self.name[last..].find(':') {
            Some(colon) => &self.name[..last + colon],
            None => &self.name,
        }
    }

    /// The registry that has it.
    pub(super) fn registry(&self) -> &str {
        match self.name.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
            Some(_) | None => DEFAULT_REGISTRY,
        }
    }

    /// The same image, whatever its tag says later.
    pub(super) fn pinned(&self, digest: &str) -> String {
        if self.name.is_empty() {
            digest.to_owned()
        } else {
            format!("{}@{digest}", self.name)
        }
    }
}

/// Whether a text is `sha256:` and 64 hexadecimal digits.
pub(super) fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:");
    digits.is_some_and(|digits| {
        digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_references_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, repository, registry) in [
            ("worker", "worker", "docker.io"),
            ("worker:v2", "worker", "docker.io"),
            ("team/worker:v2", "team/worker", "docker.io"),
            ("localhost/worker", "localhost/worker", "localhost"),
            (
                "registry:5000/team/worker:v2",
                "registry:5000/team/worker",
                "registry:5000",
            ),
            (
                "gitlab.example/a/b/c",
                "gitlab.example/a/b/c",
                "gitlab.example",
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(
                (reference.repository(), reference.registry()),
                (repository, registry)
            );
            assert_eq!(reference.digest, None);
            let pinned = reference.pinned(&digest);
            assert_eq!(pinned, format!("{text}@{digest}"));
            let again = Reference::parse(&pinned).unwrap();
            assert_eq!(
                (again.name.as_str(), again.digest),
                (text, Some(digest.clone()))
            );
        }
        let by_id = Reference::parse(&digest).unwrap();
        assert_eq!((by_id.name.as_str(), by_id.pinned(&digest)), ("", digest));
    }

    #[test]
    fn refuses_what_would_be_another_path() {
        for text in [
            "",
            "/worker",
            "a//b",
            "../x",
            "a/../b",
            "a b",
            "a?b",
            "a#b",
            "a%2fb",
            "-a",
            "a@b",
            "worker@sha256:12",
        ] {
            assert_eq!(Reference::parse(text), None, "{text}");
        }
    }
}
