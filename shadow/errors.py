"""The one kind of error that a person can mend."""


class UserError(ValueError):
    """A setting or file is wrong. The message is one sentence: what, the rule, the value, and the cure.

    The scripts show it without a traceback; everything else keeps its traceback.
    """
