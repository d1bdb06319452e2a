//! What is around a page's data: its file, its policy, and the paths by which both are asked.

use std::{io, sync::Arc};

use hyper::{
    StatusCode,
    body::Bytes,
    header::{CONTENT_SECURITY_POLICY, HeaderValue},
};

use super::access::Access;
use crate::http::{Answer, Router};

/// What stands in a page for its nonce.
const NONCE: &str = "{nonce}";

/// What stands in a page for what pages have in common, and that. The first has the second's place in it.
const COMMON: [(&str, &str); 3] = [
    ("{head}", include_str!("head.html")),
    ("{common.css}", include_str!("common.css")),
    ("{common.js}", include_str!("common.js")),
];

/// A page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Its file.
    html: &'static str,
    /// The path of its data.
    data: &'static str,
}

/// The page of a node.
pub(super) const NODE: Page = Page {
    html: include_str!("node.html"),
    data: "/node.json",
};

/// The page of a cluster.
pub(super) const CLUSTER: Page = Page {
    html: include_str!("cluster.html"),
    data: "/cluster.json",
};

impl Page {
    /// Adds the page, and its data, which `data` returns or says why not.
    pub(super) fn add<F, R>(self, router: Router, access: Access, data: F) -> Router
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Bytes, String>> + Send + 'static,
    {
        let access = Arc::new(access);
        let page_access = Arc::clone(&access);
        router
            .at("/", move |asked| {
                let allowed = page_access.to_page(&asked);
                let answer = allowed.map_or_else(refused, |()| self.answer());
                async move { answer }
            })
            .at(self.data, move |asked| {
                // Nobody's request but an allowed one costs anything.
                let answer = access.to_data(&asked).map(|()| data());
                async move {
                    match answer {
                        Err(why) => refused(why),
                        Ok(answer) => match answer.await {
                            Ok(bytes) => Answer::of("application/json", bytes),
                            Err(why) => Answer::line(StatusCode::SERVICE_UNAVAILABLE, &why),
                        },
                    }
                }
            })
    }

    /// Returns the page, whose style and script are the only ones that a browser accepts in it.
    fn answer(self) -> Answer {
        let nonce = random().and_then(|nonce| {
            let policy = HeaderValue::from_str(&policy(&nonce)).map_err(io::Error::other)?;
            Ok((nonce, policy))
        });
        match nonce {
            Ok((nonce, policy)) => Answer::of(
                "text/html; charset=utf-8",
                self.text().replace(NONCE, &nonce),
            )
            .with(CONTENT_SECURITY_POLICY, policy),
            Err(e) => {
                let why = format!("get random bytes: {e}");
                Answer::line(StatusCode::SERVICE_UNAVAILABLE, &why)
            }
        }
    }

    /// Returns the page's text, all in one.
    fn text(self) -> String {
        let whole = |text: String, (place, part): (&str, &str)| text.replace(place, part);
        COMMON.into_iter().fold(self.html.to_owned(), whole)
    }
}

fn refused(why: &'static str) -> Answer {
    Answer::line(StatusCode::FORBIDDEN, why)
}

fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Returns 128 random bits, in hexadecimal digits.
pub(super) fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_are_the_same() {
        let tokens = [random().unwrap(), random().unwrap()];
        assert_ne!(tokens[0], tokens[1]);
        assert!(tokens[0].len() == 32 && tokens[0].bytes().all(|b| b.is_ascii_hexdigit()));
    }

    #[test]
    fn the_pages_ask_nobody_else() {
        for text in [NODE, CLUSTER].map(Page::text) {
            let page = text.replace("http://www.w3.org/2000/svg", "");
            for word in ["http://", "https://", "src=", "@import", "//cdn", "url("] {
                assert!(!page.contains(word), "{word}");
            }
            // Names are chosen by others: nothing is put into the page but as text.
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                assert!(!page.contains(word), "{word}");
            }
            assert!(!page.contains("{common") && !page.contains("{head"));
        }
    }

    #[test]
    fn style_and_script_have_the_nonce_of_the_policy_and_nothing_else_is_in_a_page() {
        for page in [NODE, CLUSTER] {
            let text = page.text();
            for tag in ["<script", "<style"] {
                assert_eq!(text.matches(tag).count(), 1, "{tag}");
                assert!(text.contains(&format!("{tag} nonce=\"{NONCE}\">")), "{tag}");
            }
            // The policy forbids both.
            let (markup, _) = text.split_once("<script").unwrap();
            assert!(!markup.contains(" style=\"") && !markup.contains(" onclick"));
            let (first, second) = (page.answer(), page.answer());
            assert_ne!(first.body, second.body);
            assert_ne!(first.headers, second.headers);
            let text = String::from_utf8(first.body.to_vec()).unwrap();
            let (_, rest) = text.split_once("<script nonce=\"").unwrap();
            let (nonce, _) = rest.split_once('"').unwrap();
            assert!(!text.contains(NONCE));
            assert_eq!(first.headers[0].1.to_str().unwrap(), policy(nonce));
        }
    }
}
