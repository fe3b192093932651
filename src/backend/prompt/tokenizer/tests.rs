use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::backend::prompt::syntax;

/// Letters that stand for themselves, then those at the end of a word, then `abc`, then the special tokens.
const LETTERS: &str = "abc<>_,";
const LETTER_ENDS: u32 = 7;
const COMMA_END: u32 = 13;
const ABC: u32 = 15;
const END: u32 = 17;
/// The first id that is free.
const FREE: u32 = 18;

/// A tokenizer in a folder with these files beside its vocabulary, all of it in `tokenizer.json` or not.
fn load(config: &Value, files: &[(&str, Value)], is_one_file: bool) -> Result<PromptTokenizer, LoadError> {
    let model = tempfile::tempdir().unwrap();
    let folder = model.path().join("tokenizer");
    fs::create_dir(&folder).unwrap();
    fs::write(model.path().join("model_index.json"), "{}").unwrap();
    let letters = LETTERS.chars().map(String::from);
    let tokens = letters.clone().chain(letters.map(|letter| letter + "</w>"));
    let tokens = tokens.chain(["ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"].map(str::to_owned));
    let vocab: BTreeMap<String, u32> = tokens.zip(0..).collect();
    fs::write(folder.join("vocab.json"), json!(vocab).to_string()).unwrap();
    fs::write(folder.join("merges.txt"), "#version: 0.2\na b\nab c</w>\n").unwrap();
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    for (name, json) in files {
        fs::write(folder.join(name), json.to_string()).unwrap();
    }
    let files = ModelFiles::open(model.path().to_str().unwrap()).unwrap();
    if is_one_file {
        let whole = from_vocab_and_merges(&files, "tokenizer").unwrap();
        whole.save(folder.join("tokenizer.json"), false).unwrap();
        fs::remove_file(folder.join("vocab.json")).unwrap();
    }
    PromptTokenizer::load(&files, "tokenizer", 77)
}

fn plain() -> PromptTokenizer {
    load(&json!({}), &[], false).unwrap()
}

/// The ids of all that a text says, however long it is.
fn ids(tokenizer: &PromptTokenizer, text: &str) -> Vec<u32> {
    let span = Span { text: text.to_owned(), weight: 1.0 };
    tokenizer.words(&span, 0).unwrap().into_iter().flat_map(|word| word.ids).collect()
}

/// The ids in each chunk of a prompt, and what was cut.
fn chunks(tokenizer: &PromptTokenizer, prompt: &str) -> (Vec<Vec<u32>>, Option<String>) {
    let (chunks, cut) = tokenizer.chunks(&syntax::parse_negative(prompt)[0].sections).unwrap();
    let inside = |chunk: &Chunk| chunk.ids[1..tokenizer.end_of(chunk)].to_vec();
    (chunks.iter().map(inside).collect(), cut)
}

fn entry(text: &str) -> Value {
    json!({ "content": text, "lstrip": false, "rstrip": false, "single_word": false, "normalized": true, "special": false })
}

/// The ids are those of transformers' `CLIPTokenizer` with the same files.
#[test]
fn added_tokens_are_tokens() {
    let text = "a <CAB>,ca_b ca_bb <|ENDOFTEXT|>";
    let (a, b) = (LETTER_ENDS, LETTER_ENDS + 1);
    for is_one_file in [false, true] {
        // Not in the order of their ids.
        let added = [("added_tokens.json", json!({ "ca_b": FREE + 1, "<cab>": FREE }))];
        let tokenizer = load(&json!({}), &added, is_one_file).unwrap();
        assert_eq!(tokenizer.last_token().unwrap().1, FREE + 1);
        assert_eq!(ids(&tokenizer, text)[..6], [a, FREE, COMMA_END, FREE + 1, FREE + 1, b]);
        assert_eq!(ids(&tokenizer, "ab<cab>abc"), [0, b, FREE, ABC]);

        // Those of the configuration stand before that file, and have properties.
        let mut decoder =
            json!({ FREE.to_string(): entry("<cab>"), (FREE + 1).to_string(): entry("ca_b"), END.to_string(): entry("<|endoftext|>") });
        decoder[FREE.to_string()]["normalized"] = false.into();
        decoder[(FREE + 1).to_string()]["single_word"] = true.into();
        let other = [("added_tokens.json", json!({ "bb": FREE }))];
        let tokenizer = load(&json!({ "added_tokens_decoder": decoder }), &other, is_one_file).unwrap();
        assert_eq!(ids(&tokenizer, "<cab> ca_b bb"), [FREE, FREE + 1, 1, b]);
        assert_eq!(ids(&tokenizer, "ca_bb"), [2, a, 12, 1, b]);
        assert_eq!(ids(&tokenizer, "<CAB>"), [10, 2, 0, b, 11]);
        assert_eq!(ids(&tokenizer, "<|ENDOFTEXT|>"), [END]);
        assert_eq!(ids(&plain(), "<|ENDOFTEXT|>")[0], 3);
        let bare = json!({ "added_tokens_decoder": { FREE.to_string(): { "content": "<cab>" } } });
        assert_eq!(ids(&load(&bare, &[], is_one_file).unwrap(), "<CAB>"), [FREE]);
    }
    // What is special is found as it is written.
    let added = [("added_tokens.json", json!({ "<cab>": FREE }))];
    let tokenizer = load(&json!({ "pad_token": "<cab>" }), &added, false).unwrap();
    assert_eq!(ids(&tokenizer, "<cab> <CAB>"), [FREE, 10, 2, 0, b, 11]);
    assert_eq!(tokenizer.pad, FREE);
}

#[test]
fn an_added_token_has_an_id_of_its_own() {
    let error = |tokens: Value| load(&json!({}), &[("added_tokens.json", tokens)], false).unwrap_err().to_string();
    for (tokens, why) in [
        (json!({ "<cab>": FREE + 2 }), format!("the added token \"<cab>\" has the id {}, but {FREE} is the next one", FREE + 2)),
        (
            json!({ "a_": FREE, "c_": FREE + 2 }),
            format!("the added token \"c_\" has the id {}, but {} is the next one", FREE + 2, FREE + 1),
        ),
        (json!({ "<cab>": 1 }), "the added token \"<cab>\" has the id 1, which is that of \"b\"".to_owned()),
        (json!({ "a_": FREE, "c_": FREE }), format!("the added token \"c_\" has the id {FREE}, which is that of \"a_\"")),
        (json!({ "ab": FREE }), format!("the added token \"ab\" has the id {FREE}, but 14 in the vocabulary")),
        (json!({ "": FREE }), format!("the added token \"\" has the id {FREE}, but no text")),
        (json!({ "<cab>": -1 }), "invalid value: integer `-1`".to_owned()),
    ] {
        let error = error(tokens);
        assert!(error.contains("added_tokens.json") && error.contains(&why), "{error}");
    }
    let decoder = json!({ "added_tokens_decoder": { "1": entry("<cab>") } });
    let error = load(&decoder, &[], false).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("which is that of \"b\""), "{error}");
}

/// As in A1111's `tokenize_line`: a `BREAK` ends a chunk, whatever is in it, and at the end of the prompt there is none that is empty.
#[test]
fn breaks_end_chunks() {
    let tokenizer = plain();
    let (a, b) = (vec![LETTER_ENDS], vec![LETTER_ENDS + 1]);
    let nothing = Vec::new;
    for (prompt, right) in [
        ("", vec![nothing()]),
        ("a BREAK b", vec![a.clone(), b.clone()]),
        ("a BREAK", vec![a.clone()]),
        ("a BREAK ", vec![a.clone()]),
        ("BREAK a", vec![nothing(), a.clone()]),
        ("BREAK", vec![nothing()]),
        ("BREAK BREAK", vec![nothing(), nothing()]),
        ("a BREAK BREAK", vec![a.clone(), nothing()]),
        ("a BREAK BREAK b", vec![a.clone(), nothing(), b.clone()]),
    ] {
        assert_eq!(chunks(&tokenizer, prompt), (right, None), "{prompt}");
    }
    assert_eq!(chunks(&tokenizer, &"a BREAK ".repeat(16)), (vec![a.clone(); 16], None), "nothing is cut off");
    assert_eq!(chunks(&tokenizer, &("a BREAK ".repeat(16) + "(b) BREAK a")), (vec![a; 16], Some("b BREAK a".to_owned())));
}

#[test]
fn chunks_end_after_commas() {
    let tokenizer = plain();
    let text = "a ".repeat(59) + "(b:1.2), " + &"(c:0.5)".repeat(20);
    let (read, _) = tokenizer.chunks(&syntax::parse_negative(&text)[0].sections).unwrap();
    assert_eq!(chunks(&tokenizer, &text).0.iter().map(Vec::len).collect::<Vec<_>>(), [61, 20]);
    assert_eq!(read[0].ids[60..65], [LETTER_ENDS + 1, COMMA_END, END, END, END]);
    assert_eq!(read[0].weights[59..64], [1.0, 1.2, 1.0, 1.0, 1.0]);
    assert_eq!(read[1].weights[..22], [&[1.0][..], &[0.5; 20], &[1.0]].concat());
}

/// Wherever the last chunk ends, at a comma, within a word or before a learned one.
#[test]
fn what_is_cut_off_begins_where_the_last_chunk_ends() {
    let mut tokenizer = plain();
    tokenizer.learn(&["cc".to_owned()], &(FREE..FREE + 30));
    for before in 0..80 {
        for middle in [", ", " ", " cc ", "bbb"] {
            let text = "c ".repeat(before) + &format!("a b c a b c{middle}").repeat(260) + "the end";
            let (read, cut) = chunks(&tokenizer, &text);
            let cut = cut.unwrap();
            assert!(read.len() == MAX_CHUNKS && text.ends_with(&cut), "{cut}");
            assert_eq!([read.concat(), ids(&tokenizer, &cut)].concat(), ids(&tokenizer, &text), "{before} {middle}");
        }
    }
}
