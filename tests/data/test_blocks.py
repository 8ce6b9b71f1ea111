from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ninthsky.data.blocks import HINT_BITS, TAG_BITS, decode, parse


def texts(html: str) -> list[str]:
    return [block.text for block in parse(html).blocks]


def test_blocks_end_at_block_level_tags_and_line_breaks() -> None:
    page = parse(
        "<html><head><title> A  title </title></head><body><h1>Head</h1><p>One <b>bold</b> word<br>two</p>tail</body></html>"
    )
    assert [(block.text, block.tag, block.line) for block in page.blocks] == [
        ("Head", "h1", False),
        ("One bold word", "p", False),
        ("two", "p", True),
        ("tail", "body", False),
    ]
    assert page.title == "A title"


def test_what_is_no_text_is_left_out() -> None:
    html = (
        "<body><script>if (a<b) document.write('<p>no</p>')</script><style>p{}</style><noscript><p>no</p></noscript>"
        "<!-- <p>no</p> --><template><p>no</p></template><select><option>no</option></select>"
        "<p title='a > b \"c\"'>yes</p></body>"
    )
    assert texts(html) == ["yes"]


def test_a_script_in_an_attribute_begins_nothing() -> None:
    html = '<div data-html="<script>"><p>The article\'s text.</p></div><script>no()</script><p>More <!-- no -->of it.</p>'
    assert texts(html) == ["The article's text.", "More of it."]


def test_links_and_surroundings_are_told() -> None:
    page = parse(
        '<body><nav class="main-menu"><a href="/">Home page</a></nav>'
        '<article id="postBody"><p>Text <a>with link</a></p></article>'
        '<div style="display: none"><p>hidden</p></div></body>'
    )
    menu, text, hidden = page.blocks
    assert menu.links == 1 and menu.link_chars == len("Home page")
    assert menu.tags & TAG_BITS["nav"] and menu.hints & HINT_BITS["navigation"]
    assert text.link_chars == len("with link") and text.tags & TAG_BITS["article"] and text.hints & HINT_BITS["content"]
    assert hidden.tags & TAG_BITS["hidden"] and not text.tags & TAG_BITS["hidden"]


def test_entities_and_preformatted_text() -> None:
    assert texts("<p>a &lt; b&nbsp;&amp; c</p><pre>x = 1\n  y = 2</pre>") == ["a < b & c", "x = 1\n  y = 2"]


def test_unclosed_and_crossed_tags_are_read() -> None:
    assert texts("<p>one<p>two<ul><li>three<li>four</ul><b><p>five</b>six</p></div></body>more") == [
        "one", "two", "three", "four", "fivesix", "more",
    ]  # fmt: skip


def test_nested_100_000_deep() -> None:
    page = parse("<html><body>" + "<div>" * 100_000 + "the bottom" + "</div>" * 100_000)
    assert [block.text for block in page.blocks] == ["the bottom"]
    assert page.depth >= 100_000


def test_encodings() -> None:
    chinese = "清早五点，渡口还罩在雾里。" * 5
    html = f'<html><head><meta charset="{{}}"></head><body><p>{chinese}</p></body></html>'
    for name in ("gbk", "gb18030", "big5-hkscs", "utf-8", "utf-16"):
        text, _ = decode(html.format("gb2312" if name == "gbk" else name).encode(name, "replace"))
        assert name == "big5-hkscs" or chinese in text, name
    # Undeclared, and declared wrongly.
    assert chinese in decode(f"<p>{chinese}</p>".encode("gb18030"))[0]
    assert chinese in decode(html.format("iso-8859-1").encode())[0]


def test_cut_in_the_middle_of_a_character() -> None:
    data = "<p>正文正文".encode()[:-1]
    text, name = decode(data)
    assert name == "utf-8" and text.startswith("<p>正文正")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read(data: bytes) -> None:
    text, name = decode(data)
    assert isinstance(text, str) and name
    for block in parse(text).blocks:
        assert block.text.strip() and 0 <= block.link_chars <= len(block.text)
