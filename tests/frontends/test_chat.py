"""Prompts as chat messages."""

from forerun.chat import encode_chat


def test_chat_template_or_plain_text():
    class Plain:
        chat_template = None

        def encode(self, text, add_special_tokens=True):
            return [1] * add_special_tokens + [len(text)]

    class Chat(Plain):
        chat_template = "{{ messages }}"

        def apply_chat_template(self, turns, add_generation_prompt, tokenize):
            assert add_generation_prompt
            assert not tokenize
            return f"<user>{turns[0]['content']}<assistant>"

    assert encode_chat(Plain(), "abc") == [1, 3]
    assert encode_chat(Chat(), "abc") == [20]
