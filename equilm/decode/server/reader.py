"""From the events of one choice to pieces of its text: characters whole, stop strings never told.

Read `answer.py` next.
"""

from equilm.decode.request import Event, Request
from equilm.decode.server.answer import Piece
from equilm.decode.text import REPLACEMENT, TextStream, Tokenizer


class Reader:
    """Reads one choice.

    Args:
        tokenizer: Of the model.
        request: Whose events these are.
        stop: Strings that end the answer.
        generate: Whether the answer has tokens of its own, or is the echo alone.
    """

    def __init__(
        self, tokenizer: Tokenizer, request: Request, *, stop: tuple[str, ...], generate: bool
    ) -> None:
        self.ended = False
        self._text = TextStream(tokenizer, context=request.prompt, stop=stop)
        self._echo = tokenizer.decode(request.prompt) if request.echo else ""
        self._generate = generate

    def read(self, event: Event) -> Piece:
        """Return what the event adds; nothing once the choice has ended."""
        if self.ended:
            return Piece()
        echo, self._echo = self._echo, ""
        if event.prompt:
            return Piece(echo, prompt=event.prompt)
        if not self._generate:
            self.ended = True
            return Piece(echo, finish_reason="length")
        reason, text = event.finish_reason, echo
        if event.token is not None:
            text += self._text.push(event.token.id)
        if self._text.stopped:
            reason = "stop"
        elif reason is not None:
            text += self._text.close()
        self.ended = reason is not None
        return Piece(text, () if event.token is None else (event.token,), finish_reason=reason)


def token_name(tokenizer: Tokenizer, token: int, *, first: bool = False) -> str:
    """Return what a token adds to a text, or its number where it is none by itself.

    Args:
        tokenizer: Of the model.
        token: Its id.
        first: Whether it begins the text, where some have no space before them.
    """
    text = tokenizer.decode([token])
    if not text or REPLACEMENT in text:
        return f"token_id:{token}"
    return text if first else tokenizer.decode([token, token])[len(text) :]
