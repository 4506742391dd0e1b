"""Chat templates in the manner of known families, and a character tokenizer that knows their markers."""

from sequencematch.tasks import build_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Every turn ends with `<|im_end|>`, which is the eos token, and a newline."""

GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}"
    "{% endif %}"
    "<start>{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}"
)
"""It begins with bos, and ends a turn with `<end>`, which is not the eos token."""

QWEN3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for message in messages if message.role == 'user' %}{% set ns.last = messages.index(message) %}{% endfor %}"
    "{% for message in messages %}{% set content = message.content %}"
    "{% if message.role == 'assistant' and loop.index0 < ns.last %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
"""ChatML that drops the thinking of answers before the last question."""

REWRITING = (
    "{% for message in messages %}{{ message.role }} {{ loop.index }} of {{ messages | length }}: "
    "{{ message.content }}<|im_end|>{% endfor %}"
)
"""An answer changes what is written before it."""

TOOLS = (
    "{% if tools %}tools:{% for tool in tools %} {{ tool.name }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for message in messages %}{{ message.role }}: "
    "{% if message.tool_calls is defined %}call {{ message.tool_calls[0].name }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {{ opening or '' }}{% endif %}"
)
"""It names the tools first, and looks at whether a message has the key `tool_calls`."""

MARKERS = ["<|im_start|>", "<|im_end|>", "<start>", "<end>"]


def chat_tokenizer(template, eos_token="<|im_end|>"):
    """A new tokenizer with a token for each ASCII character and each marker."""
    tokenizer = build_tokenizer("\n" + "".join(map(chr, range(32, 127))))
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.eos_token = eos_token
    tokenizer.chat_template = template
    return tokenizer


def message(role, content, **more):
    """One message."""
    return {"role": role, "content": content, **more}


def user(content):
    """A user's message."""
    return message("user", content)


def assistant(content, **more):
    """An assistant's message."""
    return message("assistant", content, **more)
