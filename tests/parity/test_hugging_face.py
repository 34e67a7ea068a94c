import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from tinyfn import interop

ENDS = {"bos_token_id": 0, "eos_token_id": 0}


def test_t():
    for C in GPT2LMHeadModel, GPT2Model:
        c = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, **ENDS)
        m = C(c).eval().double()
        for p in m.parameters():
            p.data += 0.3 * torch.randn_like(p)
        params, options, f = interop.from_hugging_face(m)
        t = torch.randint(11, (2, 5))
        torch.testing.assert_close(f(params, t, **options), m(t)[0], rtol=1e-9, atol=1e-9)
        back = interop.to_hugging_face(params, c)
        theirs = m.state_dict()
        assert back.keys() == theirs.keys()
        assert all(torch.equal(back[n], theirs[n]) for n in back)
